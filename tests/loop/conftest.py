"""One base model and one finished loop for all tests of the loop."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.command import LOOP, irpo


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `base` and `loop`; read only."""
    runs = tmp_path_factory.mktemp("runs")
    finished = irpo("run", LOOP, f"runs={runs}")
    assert finished.status == 0, finished.errors
    return runs


@pytest.fixture
def runs_with_base(finished_runs: Path, tmp_path: Path) -> Path:
    """A folder of its own with the finished run `base`."""
    shutil.copytree(finished_runs / "base", tmp_path / "base")
    return tmp_path
