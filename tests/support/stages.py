"""Running stages as the loop runs them: a request file, a process (or several), files that come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from irpo_megatron.artifacts import write_json
from irpo_megatron.config import (
    LossConfig,
    ParallelConfig,
    PrecisionConfig,
    SelectionConfig,
    TrackingConfig,
    TrainingConfig,
)
from irpo_megatron.config_launch import LaunchConfig
from irpo_megatron.launch.local import run_stage_process
from irpo_megatron.launch.local_workers import run_workers
from irpo_megatron.records import Pair, write_rows
from irpo_megatron.requests import (
    EvaluateRequest,
    GenerateRequest,
    ImportRequest,
    JudgeRequest,
    ReferenceRequest,
    Request,
    TrainRequest,
    WorkerRequest,
)

ONE_THREAD = LaunchConfig(threads=1)


def run_request(module: str, request: Request, *, processes: int = 1, watch: Callable[[], None] = lambda: None) -> None:
    """Run one stage's process and wait; `watch` is called a few times a second."""
    request.output.mkdir(parents=True, exist_ok=True)
    path = request.output.with_name(f"{request.output.name}.request.json")
    write_json(path, request.model_dump(mode="json"))
    log = request.output.with_name(f"{request.output.name}.log")
    run_stage_process(module, path, processes=processes, threads=1, log=log, watch=watch)


def run_sampling(request: GenerateRequest | EvaluateRequest | JudgeRequest) -> None:
    """Run the workers of a stage and wait; of each its log."""
    request.output.mkdir(parents=True, exist_ok=True)
    path = request.output.with_name(f"{request.output.name}-workers.request.json")
    write_json(path, WorkerRequest.of(request).model_dump(mode="json"))
    run_workers(
        "irpo_megatron.generation.worker",
        path,
        request.output,
        variables=[{}] * request.generation.workers,
        threads=1,
        logs=request.output,
        watch=lambda: None,
        say=print,
        python=request.generation.python,
    )


def import_model(folder: Path, output: Path) -> Path:
    """Hugging Face folder -> Megatron checkpoint."""
    request = ImportRequest(
        output=output, iteration=0, launch=ONE_THREAD, parallel=ParallelConfig(), model_folder=folder
    )
    run_request("irpo_megatron.conversion.import_stage", request)
    return output / "step-000000"


def write_pairs(directory: Path, pairs: list[Pair]) -> Path:
    """A pairs directory as the pairs stage leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "pairs.parquet", pairs, Pair)
    return directory


def run_reference(
    output: Path,
    *,
    pairs: Path,
    checkpoint: Path,
    parallel: ParallelConfig,
    training: TrainingConfig,
    precision: PrecisionConfig | None = None,
) -> Path:
    """The reference stage at a layout."""
    request = ReferenceRequest(
        output=output,
        iteration=1,
        training=training,
        precision=precision or PrecisionConfig(),
        parallel=parallel,
        launch=ONE_THREAD,
        pair_rows=pairs,
        checkpoint=checkpoint,
    )
    run_request("irpo_megatron.training.reference", request, processes=parallel.world_size)
    return output


def train_request(
    output: Path, *, pairs: Path, checkpoint: Path, reference: Path | None, **changes: Any
) -> TrainRequest:
    """A training request with small defaults."""
    fields: dict[str, Any] = {
        "seed": 0,
        "method": "irpo",
        "loss": LossConfig(),
        "training": TrainingConfig(),
        "precision": PrecisionConfig(),
        "selection": SelectionConfig(candidates=1, held_out=0),
        "parallel": ParallelConfig(),
        "tracking": TrackingConfig(to=()),
        "launch": ONE_THREAD,
        "run_dir": output.parent,
    } | changes
    return TrainRequest(
        output=output, iteration=1, pair_rows=pairs, checkpoint=checkpoint, reference=reference, **fields
    )


def run_training(request: TrainRequest) -> list[dict[str, Any]]:
    """The training stage; its metrics, a mapping a step."""
    run_request("irpo_megatron.training.stage", request, processes=request.parallel.world_size)
    return [json.loads(line) for line in (request.output / "metrics.jsonl").read_text().splitlines()]
