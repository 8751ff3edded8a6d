"""How far a run is, read from its directory alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from irpo_megatron.artifacts import MANIFEST, partial_directory, read_manifest
from irpo_megatron.claims import View, WorkerView, how_far, view_claims
from irpo_megatron.config_file import validate
from irpo_megatron.run_directory import DIRECTORIES, MEGATRON_BASE, load_tree


def status_rows(run_dir: Path) -> Iterator[tuple[str, str, str]]:
    """(iteration, stage, state) of every stage, in the order in which they run.

    Below a stage that workers are sampling for stand more rows, with neither iteration nor stage: its shards, and a row
    a worker.

    Raises:
        UserError: `run_dir` is no run directory, or its config.yaml is not one of this version.
    """
    for iteration, stage, directory in _stages(run_dir):
        yield iteration, stage, _state(directory)
        view = None if (directory / MANIFEST).is_file() else view_claims(partial_directory(directory))
        if view is not None and view.running + view.waiting > 0:
            yield "", "", _shards(view)
            for worker in view.workers:
                yield "", "", _worker(worker)


def _stages(run_dir: Path) -> Iterator[tuple[str, str, Path]]:
    """(iteration, stage, directory) of every stage."""
    file = run_dir / "config.yaml"
    config = validate(load_tree(file), file)
    yield "", "problems", run_dir / "problems"
    if config.model.random is not None:
        yield "", "base-model", run_dir / "base-model"
    absent = {"irpo": set[str](), "star": {"reference"}, "sft": {"generate", "score", "reference"}}[config.method]
    if config.generation.fp8_weights is None:
        absent.add("quantise")
    base = run_dir / "iteration-00"
    yield "0", "convert", base / MEGATRON_BASE
    for stage in ("quantise", "evaluate"):
        if stage not in absent:
            yield "0", stage, base / DIRECTORIES[stage]
    for iteration in range(1, config.iterations + 1):
        for stage, directory in DIRECTORIES.items():
            if stage not in absent:
                yield str(iteration), stage, run_dir / f"iteration-{iteration:02d}" / directory


def _state(directory: Path) -> str:
    if (directory / MANIFEST).is_file():
        return f"done in {read_manifest(directory)['seconds']:,.1f} s"
    partial = partial_directory(directory)
    if not partial.is_dir():
        return "missing"
    progress = how_far(partial)
    return "partial" if progress is None else f"partial: {progress.done:,} of {progress.total:,} {progress.unit}"


def _shards(view: View) -> str:
    left = "" if view.seconds_left is None else f"; about {_duration(view.seconds_left)} left"
    return f"  shards: {view.done:,} done, {view.running:,} running, {view.waiting:,} waiting{left}"


def _worker(worker: WorkerView) -> str:
    rate = "" if worker.tokens_per_second is None else f", {worker.tokens_per_second:,.0f} tokens/s"
    return (
        f"  {worker.host} {worker.pid}: {worker.state}, {worker.samples:,} samples{rate}, "
        f"last heard of {_duration(worker.seconds_ago)} ago"
    )


def _duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
