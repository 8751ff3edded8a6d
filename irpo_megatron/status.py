"""How far a run is, read from its directory alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from irpo_megatron.artifacts import MANIFEST, partial_directory, read_manifest, read_progress
from irpo_megatron.config_file import validate
from irpo_megatron.run_directory import DIRECTORIES, MEGATRON_BASE, load_tree


def status_rows(run_dir: Path) -> Iterator[tuple[str, str, str]]:
    """(iteration, stage, state) of every stage, in the order in which they run.

    Raises:
        UserError: `run_dir` is no run directory, or its config.yaml is not one of this version.
    """
    file = run_dir / "config.yaml"
    config = validate(load_tree(file), file)
    yield "", "problems", _state(run_dir / "problems")
    if config.model.random is not None:
        yield "", "base-model", _state(run_dir / "base-model")
    base = run_dir / "iteration-00"
    yield "0", "convert", _state(base / MEGATRON_BASE)
    yield "0", "evaluate", _state(base / DIRECTORIES["evaluate"])
    absent = {"irpo": (), "star": ("reference",), "sft": ("generate", "score", "reference")}[config.method]
    for iteration in range(1, config.iterations + 1):
        for stage, directory in DIRECTORIES.items():
            if stage not in absent:
                yield str(iteration), stage, _state(run_dir / f"iteration-{iteration:02d}" / directory)


def _state(directory: Path) -> str:
    if (directory / MANIFEST).is_file():
        return f"done in {read_manifest(directory)['seconds']:,.1f} s"
    partial = partial_directory(directory)
    if not partial.is_dir():
        return "missing"
    progress = read_progress(partial)
    return "partial" if progress is None else f"partial: {progress.done:,} of {progress.total:,} {progress.unit}"
