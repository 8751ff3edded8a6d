"""Which of the processes that tests start are traced for the coverage: few, since it takes a quarter of their time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# What coverage.py tells the processes that its own starts.
_KEY = "COVERAGE_PROCESS_CONFIG"
_CONFIG = os.environ.get(_KEY)


def leave_processes_out() -> None:
    """From now on only what runs in `traced` is."""
    os.environ.pop(_KEY, None)


@contextmanager
def traced() -> Iterator[None]:
    """Have processes that are started here traced, where there is a coverage."""
    with pytest.MonkeyPatch.context() as environment:
        if _CONFIG is not None:
            environment.setenv(_KEY, _CONFIG)
        yield
