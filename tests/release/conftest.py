"""Runs for the tests of releases."""

from __future__ import annotations

from pathlib import Path

import pytest
from release.released_run import make_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run of two iterations, from random weights."""
    return make_run(tmp_path)
