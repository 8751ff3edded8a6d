"""`results.json`: the numbers of a run, for programs.

Everything but `seconds` is a function of what the run computed: two runs of one configuration give equal files
apart from their times.
"""

from __future__ import annotations

from pathlib import Path

from irpo_megatron.artifacts import Json, read_manifest, write_json
from irpo_megatron.report.run_files import Iteration, Run, load_run

RESULTS = "results.json"


def collect_results(run_dir: Path) -> Json:
    """Task, method, and an entry for each iteration whose evaluation is committed.

    Raises:
        UserError: the directory is no run directory, or a committed file is broken.
    """
    return results_of(load_run(run_dir))


def results_of(run: Run) -> Json:
    """The same, of a run that has been read already."""
    return {
        "task": run.config.task,
        "method": run.config.method,
        "iterations": [_entry(iteration, evaluation) for iteration, evaluation in run.evaluated],
    }


def write_results(run_dir: Path) -> Path:
    """Write `results.json` at the top of the run directory."""
    path = run_dir / RESULTS
    write_json(path, collect_results(run_dir))
    return path


def _entry(iteration: Iteration, evaluation: Json) -> Json:
    majority = evaluation.get("majority")
    pass_at = evaluation.get("pass_at") or {}
    return {
        "iteration": iteration.number,
        "accuracy": evaluation["accuracy"],
        "interval": evaluation["interval"],
        "majority": {key: majority[key] for key in ("k", "accuracy")} if majority else None,
        "ungraded": evaluation.get("ungraded"),
        "pass_at": {k: pass_at[k] for k in sorted(pass_at, key=int)},
        "pairs": iteration.pair_counts,
        "seconds": {_stage_of(iteration.directory / name): value for name, value in iteration.seconds.items()},
    }


def _stage_of(directory: Path) -> str:
    """The stage that made a directory, by the name that the command line knows."""
    return str(read_manifest(directory)["stage"])
