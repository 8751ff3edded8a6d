"""Workers forked from a parent that has everything imported: one starts in a moment, and is a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from irpo_megatron.artifacts import read_json
from irpo_megatron.generation import worker
from irpo_megatron.requests import WorkerRequest


def start_worker(request: Path, work: Callable[[Path], None] | None = None) -> ForkServerProcess:
    """Start a worker on a request file.

    Args:
        work: What it does, instead of what workers do.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch", "transformers.models.auto.modeling_auto"])
    process = context.Process(target=work or _work, args=(request,), daemon=True)
    process.start()
    return process


def _work(request: Path) -> None:
    import torch

    torch.set_num_threads(1)
    worker.run(WorkerRequest.model_validate(read_json(request)))
