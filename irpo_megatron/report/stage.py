"""Write what a run directory says about its run: `results.json`, `metrics.jsonl` and `report.html`.

    irpo report CONFIG

Works at any time: a run that is half-way gets a report of what is there.
"""

from __future__ import annotations

import os
from pathlib import Path

from irpo_megatron.artifacts import Json
from irpo_megatron.report.page import write_report
from irpo_megatron.report.results import write_results
from irpo_megatron.report.run_files import load_run, metrics_file
from irpo_megatron.report.wording import ABSENT, count, interval, percent
from irpo_megatron.requests import ReportRequest

METRICS = "metrics.jsonl"
SUMMARY_COLUMNS = ("iteration", "accuracy %", "95 % interval", "maj@k %", "pairs", "minutes")


def run(request: ReportRequest) -> None:
    """The report as a stage: its output is the run directory itself."""
    run_report(request.output)


def run_report(run_dir: Path) -> None:
    """Write the three files at the top of the run directory.

    Raises:
        UserError: the directory is no run directory, a committed file is broken, or the report's libraries are missing.
    """
    write_results(run_dir)
    write_metrics(run_dir)
    write_report(run_dir)


def write_metrics(run_dir: Path) -> Path:
    """Write `metrics.jsonl`: the training metrics of every committed iteration, one after the other."""
    path = run_dir / METRICS
    temporary = path.with_name(f".{METRICS}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        for iteration in load_run(run_dir).iterations:
            if iteration.metrics:
                file.write(metrics_file(iteration.directory).read_bytes())
    os.replace(temporary, path)
    return path


def summary_rows(results: Json) -> list[tuple[str, ...]]:
    """The table that the command line prints when a run ends: a row an iteration, under `SUMMARY_COLUMNS`."""
    return [_row(entry) for entry in results["iterations"]]


def _row(entry: Json) -> tuple[str, ...]:
    majority, pairs = entry["majority"], entry["pairs"]
    return (
        str(entry["iteration"]),
        percent(entry["accuracy"]),
        interval(entry["interval"]),
        percent(majority["accuracy"]) if majority else ABSENT,
        count(pairs.get("pairs")) if pairs else ABSENT,
        f"{sum(entry['seconds'].values()) / 60:.1f}",
    )
