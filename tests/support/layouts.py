"""Reference pass and training at a layout, several variants in one set of forked processes.

Starting a process and importing torch and Megatron-Core takes longer than training a tiny model; here the ranks are
forked from a process that has imported them, and go through all variants.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing

from irpo_megatron.config import ParallelConfig
from irpo_megatron.config_launch import LaunchConfig
from irpo_megatron.errors import Interrupted
from irpo_megatron.requests import ImportRequest, ReferenceRequest, Request, TrainRequest


@dataclass(frozen=True)
class Variant:
    """A reference pass, where there is one, and the training that follows."""

    reference: ReferenceRequest | None
    training: TrainRequest
    stop_after: int | None = None
    """Training is asked to stop when it has done so many steps: it must then have saved."""


def run_variants(world_size: int, variants: Sequence[Variant]) -> None:
    """Run all variants on `world_size` ranks; an exception on any rank fails the test with that rank's traceback."""
    # As under torchrun, the ranks meet at a store of their parent's, a new one for each process group. A port that was
    # found free for a store of rank 0's could be somebody else's by then.
    stores = [
        dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for variant in variants
        for request in (variant.reference, variant.training)
        if request is not None
    ]
    _fork(_rank, (world_size, [store.port for store in stores], list(variants)), ranks=world_size)


def _fork(function: Callable[..., None], arguments: tuple[Any, ...], *, ranks: int = 1) -> None:
    """`function(rank, *arguments)` in processes that have everything imported."""
    from irpo_megatron.conversion import export_stage, import_stage  # noqa: F401
    from irpo_megatron.training import reference, stage  # noqa: F401

    torch.multiprocessing.start_processes(function, args=arguments, nprocs=ranks, start_method="fork")


def metrics_of(variant: Variant) -> list[dict[str, Any]]:
    """What training wrote about its steps."""
    return [json.loads(line) for line in (variant.training.output / "metrics.jsonl").read_text().splitlines()]


def run_alone(stage: str, requests: Sequence[Request]) -> None:
    """Run a stage of one process on each request in turn."""
    _fork(_alone, (stage, list(requests)))


def import_models(folders: Mapping[Path, Path]) -> list[Path]:
    """Hugging Face folder -> where to put what is made of it; the Megatron checkpoints."""
    run_alone(
        "irpo_megatron.conversion.import_stage",
        [
            ImportRequest(
                output=output,
                iteration=0,
                parallel=ParallelConfig(),
                launch=LaunchConfig(threads=1),
                model_folder=folder,
            )
            for folder, output in folders.items()
        ],
    )
    return [output / "step-000000" for output in folders.values()]


def final_weights(checkpoints: Sequence[Path]) -> list[dict[str, torch.Tensor]]:
    """The weights of Megatron checkpoints in fp32, under their Hugging Face names."""
    results = torch.multiprocessing.get_context("fork").SimpleQueue()
    _fork(_load, (list(checkpoints), results))
    loaded: list[dict[str, torch.Tensor]] = [torch.load(path, weights_only=True) for path in results.get()]
    return loaded


def _rank(rank: int, world_size: int, ports: list[int], variants: Sequence[Variant]) -> None:
    from irpo_megatron.training import reference, stage

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    logging.disable(logging.INFO)
    for variant in variants:
        try:
            if variant.reference is not None:
                _run(reference, variant.reference, ports)
            if variant.stop_after is None:
                _run(stage, variant.training, ports)
            else:
                _run_and_stop(variant.training, variant.stop_after, ports)
        except BaseException as error:
            raise AssertionError(f"rank {rank}, {variant.training}:\n{traceback.format_exc()}") from error


def _run(stage: ModuleType, request: Request, ports: list[int]) -> None:
    os.environ["MASTER_PORT"] = str(ports.pop())
    request.output.mkdir(parents=True, exist_ok=True)
    stage.run(request)


def _run_and_stop(request: TrainRequest, steps: int, ports: list[int]) -> None:
    from megatron.core import parallel_state

    from irpo_megatron.training import stage

    with mock.patch.object(stage, "stop_requests", return_value=contextlib.nullcontext(_StopAfter(steps))):
        try:
            _run(stage, request, ports)
        except Interrupted:  # a stage's process would end here, and its process groups with it
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
        else:
            raise AssertionError("training went on to its end")


class _StopAfter:
    """`StopRequests` that a stage looks at after each step."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


def _alone(_: int, stage: str, requests: Sequence[Request]) -> None:
    for request in requests:
        request.output.mkdir(parents=True)
        importlib.import_module(stage).run(request)


def _load(_: int, checkpoints: Sequence[Path], results: Any) -> None:
    from irpo_megatron.conversion.out_of_megatron import CheckpointWeights, part
    from irpo_megatron.engine.architecture import read_architecture
    from irpo_megatron.engine.checkpoint import read_config

    paths = []
    for checkpoint in checkpoints:
        weights = CheckpointWeights(checkpoint, read_architecture(read_config(checkpoint)))
        joined = ((entry, weights.read(entry)) for entry in weights.entries)
        paths.append(checkpoint.with_suffix(".pt"))
        torch.save(
            {name: part(whole, entry, name).float() for entry, whole in joined for name in entry.tensors}, paths[-1]
        )
    results.put(paths)
