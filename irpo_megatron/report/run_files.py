"""A run directory, read once for everything that the report says about it.

Only committed stages are read: a run that is half-way, or a method without some stages, simply has fewer of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from irpo_megatron.artifacts import MANIFEST, Json, read_json, read_manifest
from irpo_megatron.config import Config
from irpo_megatron.errors import UserError

STAGES = (
    "problems",
    "base-model",
    "checkpoint-megatron",
    "generations",
    "scores",
    "pairs",
    "reference",
    "training",
    "selection",
    "checkpoint-hf",
    "checkpoint-fp8",
    "evaluation",
)
"""Stage directories in the order in which the loop makes them."""


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What is on disk of one iteration; iteration 0 is the base model."""

    number: int
    directory: Path
    seconds: dict[str, float]
    """Wall time of each committed stage, in the order of the loop."""
    evaluation: Json | None
    selection: Json | None
    score_counts: Json | None
    pair_counts: Json | None
    metrics: tuple[Json, ...]
    """One object an optimizer step, in order."""

    def committed(self, stage: str) -> Path | None:
        """The directory of a stage that is complete, else None."""
        return self.directory / stage if stage in self.seconds else None

    def is_chosen(self, candidate: Json) -> bool:
        """Whether a candidate of `selection` is the one that became the iteration's model."""
        return self.selection is not None and bool(candidate["step"] == self.selection["step"])


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory as read."""

    directory: Path
    config: Config
    config_text: str
    """config.yaml as it stands."""
    environment: Json
    seconds: dict[str, float]
    """Wall time of the stages before the first iteration."""
    iterations: tuple[Iteration, ...]

    @property
    def evaluated(self) -> list[tuple[Iteration, Json]]:
        """The iterations whose evaluation is committed, each with its results."""
        return [(iteration, iteration.evaluation) for iteration in self.iterations if iteration.evaluation is not None]


def load_run(run_dir: Path) -> Run:
    """Read what the run directory holds.

    Raises:
        UserError: it holds no valid config.yaml, or a committed file is broken.
    """
    config, config_text = _read_config(run_dir / "config.yaml")
    environment = run_dir / "environment.json"
    numbered = sorted(
        (int(match[1]), path) for path in run_dir.iterdir() if (match := re.fullmatch(r"iteration-(\d+)", path.name))
    )
    return Run(
        directory=run_dir,
        config=config,
        config_text=config_text,
        environment=read_json(environment) if environment.is_file() else {},
        seconds=_stage_seconds(run_dir),
        iterations=tuple(_load_iteration(number, path) for number, path in numbered),
    )


def metrics_file(iteration_dir: Path) -> Path:
    """Where the training stage of an iteration leaves one JSON object a step."""
    return iteration_dir / "training" / "metrics.jsonl"


def _read_config(path: Path) -> tuple[Config, str]:
    try:
        text = path.read_text(encoding="utf-8")
        return Config.model_validate(yaml.safe_load(text)), text
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise UserError(
            f"{path}: {error}",
            "a run directory holds the resolved configuration of its run",
            "name a directory that `irpo run` made, or restore its config.yaml",
        ) from error


def _load_iteration(number: int, directory: Path) -> Iteration:
    seconds = _stage_seconds(directory)

    def result(stage: str, name: str) -> Json | None:
        path = directory / stage / name
        return read_json(path) if stage in seconds and path.is_file() else None

    metrics = metrics_file(directory)
    return Iteration(
        number=number,
        directory=directory,
        seconds=seconds,
        evaluation=result("evaluation", "results.json"),
        selection=result("selection", "selection.json"),
        score_counts=result("scores", "counts.json"),
        pair_counts=result("pairs", "counts.json"),
        metrics=tuple(_read_lines(metrics)) if "training" in seconds and metrics.is_file() else (),
    )


def _stage_seconds(parent: Path) -> dict[str, float]:
    """Wall time of each committed stage below `parent`; a stage that this file does not know comes last."""
    names = sorted(path.name for path in parent.iterdir() if path.suffix != ".partial" and (path / MANIFEST).is_file())
    names.sort(key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    return {name: float(read_manifest(parent / name)["seconds"]) for name in names}


def _read_lines(path: Path) -> Iterator[Json]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: {error}",
                    "training metrics are one JSON object a line",
                    f"delete {path.parent} so that the stage is computed again",
                ) from error
