"""Metrics to TensorBoard, Weights & Biases or MLflow, by one key: `tracking.to`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from irpo_megatron.errors import UserError
from irpo_megatron.requests import TrainRequest


class Tracker(Protocol):
    """Where the metrics of a step go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record one optimizer step (1-based)."""

    def close(self) -> None:
        """Hand over what is buffered."""


def open_tracker(name: str, request: TrainRequest, *, done: int) -> Tracker:
    """The tracker called `name`; steps after `done` will be logged (again, after a kill).

    Raises:
        UserError: its package is not installed.
    """
    kinds: dict[str, Callable[[TrainRequest, int], Tracker]] = {
        "tensorboard": TensorBoardTracker,
        "wandb": WandbTracker,
        "mlflow": MlflowTracker,
    }
    return kinds[name](request, done)


def _import(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"tracking.to names {package}: {error}",
            "a tracker's package must be installed beside the trainer",
            f"pip install {package}, or take it out of tracking.to",
        ) from error


def _part(request: TrainRequest) -> str:
    return f"iteration-{request.iteration:02d}" + ("" if request.retrain_steps is None else "-retrained")


def _run_name(request: TrainRequest) -> str:
    return f"{request.run_dir.name}-{_part(request)}"


class TensorBoardTracker:
    """Event files under `tensorboard/iteration-NN` of the run directory."""

    def __init__(self, request: TrainRequest, done: int) -> None:
        folder = request.run_dir / "tensorboard" / _part(request)
        module = _import("tensorboard", "torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=done + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run an iteration, in one group; project and key come from its own environment variables."""

    def __init__(self, request: TrainRequest, done: int) -> None:
        self._run = _import("wandb", "wandb").init(
            name=_run_name(request),
            id=_run_name(request),
            group=request.run_dir.name,
            resume="allow",
            dir=str(request.run_dir),
            config=request.model_dump(mode="json", include={"loss", "training", "parallel", "seed", "method"}),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({f"train/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """An MLflow run an iteration; the server comes from `MLFLOW_TRACKING_URI`."""

    def __init__(self, request: TrainRequest, done: int) -> None:
        self._mlflow = _import("mlflow", "mlflow")
        self._mlflow.start_run(run_name=_run_name(request))
        self._mlflow.log_params(request.model_dump(mode="json", include={"loss", "training", "parallel"}))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._mlflow.end_run()
