"""The three files at the top of a run directory, and the command that writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from report.synthetic_run import RunBuilder

from irpo_megatron.errors import UserError
from irpo_megatron.report.stage import run, run_report
from irpo_megatron.requests import ReportRequest


def test_three_files(run_dir: Path) -> None:
    run_report(run_dir)
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(step["iteration"], step["step"]) for step in steps] == [(i, s) for i in (1, 2) for s in range(1, 21)]
    assert (run_dir / "results.json").is_file()
    assert (run_dir / "report.html").is_file()
    assert not list(run_dir.glob(".*.tmp"))


def test_metrics_of_an_uncommitted_training_are_left_out(builder: RunBuilder) -> None:
    builder.base()
    builder.iteration(1)
    builder.iteration(2, up_to="training")
    (builder.directory / "iteration-02" / "training" / "manifest.json").unlink()
    run_report(builder.directory)
    lines = (builder.directory / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["iteration"] for line in lines} == {1}


def test_broken_metrics_are_named_with_their_line(builder: RunBuilder) -> None:
    builder.training(1)
    path = builder.directory / "iteration-01" / "training" / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        run_report(builder.directory)


def test_without_the_drawing_libraries(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="matplotlib is not installed"):
        run_report(run_dir)
    assert (run_dir / "results.json").is_file(), "the numbers need no drawing library"


def test_the_stage_writes_into_the_run_directory(run_dir: Path) -> None:
    run(ReportRequest(output=run_dir, iteration=1))
    assert (run_dir / "report.html").is_file()
