"""Workers that join in one directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.claims import LEASE_SECONDS, Clock, on_node

from irpo_megatron.claims import Claimant


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def join(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Claimant]]:
    """Have a worker of a node join those in `tmp_path`; all leave at the end."""
    with ExitStack() as stack:

        def start(host: str) -> Claimant:
            claimant = Claimant(tmp_path, lease_seconds=LEASE_SECONDS, identity=on_node(host), clock=clock)
            return stack.enter_context(claimant)

        yield start
