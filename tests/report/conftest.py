"""Run directories for the tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from report.synthetic_run import RunBuilder

from irpo_megatron.report.page import write_report


@pytest.fixture
def builder(tmp_path: Path) -> RunBuilder:
    """An empty run of the demo task."""
    return RunBuilder(tmp_path)


@pytest.fixture
def run_dir(builder: RunBuilder) -> Path:
    """A finished run: the base model and two iterations."""
    return _finish(builder)


@pytest.fixture(scope="session")
def finished_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of such a run, written once for the tests that only read it."""
    return write_report(_finish(RunBuilder(tmp_path_factory.mktemp("run")))).read_text(encoding="utf-8")


def _finish(builder: RunBuilder) -> Path:
    builder.base()
    builder.iteration(1)
    builder.iteration(2)
    return builder.directory
