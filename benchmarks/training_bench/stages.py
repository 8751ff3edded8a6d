"""This project's stages before training, run on files as the loop runs them, and the request of the training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.training_bench.inputs import Inputs
from irpo_megatron.artifacts import write_json
from irpo_megatron.config import Config, DataConfig, PrecisionConfig, SelectionConfig, TrackingConfig
from irpo_megatron.config_launch import LaunchConfig
from irpo_megatron.requests import ImportRequest, ReferenceRequest, Request, TrainRequest

ENDLESS = 100_000
IDLE_MINUTES = 10_000.0  # a worker that waits for its turn has not stalled


def base_request(inputs: Inputs, folder: Path, *, threads: int, dtype: str, training: dict[str, Any]) -> TrainRequest:
    """The request of a training that never ends, on the pairs in their order; makes what it needs first."""
    config = Config(
        name="bench",
        task="gsm8k",
        data=DataConfig(train="unused", test="unused"),
        training={"epochs": ENDLESS, "shuffle": False, **training},
        precision=PrecisionConfig(dtype=dtype),
        selection=SelectionConfig(candidates=1, held_out=0),
        tracking=TrackingConfig(to=()),
        launch=LaunchConfig(threads=threads, stall_minutes=IDLE_MINUTES),
    )
    imported, reference = folder / "imported", folder / "reference"
    _run("conversion.import_stage", _request(ImportRequest, config, imported, model_folder=inputs.model_folder))
    checkpoint = imported / "step-000000"
    _run(
        "training.reference",
        _request(ReferenceRequest, config, reference, pair_rows=inputs.pair_rows, checkpoint=checkpoint),
    )
    return _request(
        TrainRequest,
        config,
        folder / "training",
        pair_rows=inputs.pair_rows,
        reference=reference,
        checkpoint=checkpoint,
        run_dir=folder,
    )


def with_training(request: TrainRequest, output: Path, changes: dict[str, Any]) -> TrainRequest:
    """The same training with other settings."""
    training = type(request.training)(**{**request.training.model_dump(), **changes})
    output.mkdir(parents=True, exist_ok=True)
    return request.model_copy(update={"training": training, "output": output})


def _request(kind: type[Any], config: Config, output: Path, **inputs: Any) -> Any:
    return kind(output=output, iteration=1, **kind.config_values(config), **inputs)


def _run(module: str, request: Request) -> None:
    """Run a stage's process; what it says is shown where it fails."""
    request.output.mkdir(parents=True)
    path = request.output.with_suffix(".request.json")
    write_json(path, request.model_dump(mode="json"))
    command = [sys.executable, "-m", "irpo_megatron.process", f"irpo_megatron.{module}", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{module} failed:\n{done.stdout[-4000:]}")
