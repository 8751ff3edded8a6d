"""Process groups: who this process is among tensor, pipeline and data parallelism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from irpo_megatron.config import ParallelConfig
from irpo_megatron.engine.cpu import answer_for_cuda


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands in the layout, and the groups that the method needs by name."""

    rank: int
    data_rank: int
    data_size: int
    is_last_stage: bool
    """It holds the output layer, so losses and log-probs exist here."""
    holds_results: bool
    """Of the processes that computed the same losses (tensor parallel), the one that speaks for them."""
    tensor_group: dist.ProcessGroup
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes what is written once: metrics, progress, renames."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over data-parallel ranks of values that exist on the last stage, handed to every process.

        Args:
            values: Any shape, the same on all processes; ignored where `holds_results` is false.
        """
        # Gloo is handed contiguous tensors only: of others it has moved the wrong elements without an error.
        total = (
            values.clone(memory_format=torch.contiguous_format)
            if self.holds_results
            else values.new_zeros(values.shape)
        )
        dist.all_reduce(total)
        return total


@contextmanager
def parallel_world(parallel: ParallelConfig, *, threads: int) -> Iterator[Place]:
    """Join the process groups of a layout for the length of a `with` block.

    The launcher's environment says rank and world size (torchrun's `RANK`, `WORLD_SIZE`, ...); a layout of one process
    needs neither launcher nor network. NCCL where CUDA is present, Gloo elsewhere.

    Args:
        threads: CPU threads of this process.
    """
    torch.set_num_threads(threads)
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        answer_for_cuda()
    # fp32 means fp32: some images switch TF32 on, whose errors are a thousand times those that the guards allow.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    backend = "nccl" if on_cuda else "gloo"
    if parallel.world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        dist.init_process_group(backend)
    assert dist.get_world_size() == parallel.world_size, (
        f"{dist.get_world_size()} processes were started for a layout of {parallel.world_size}"
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor, pipeline_model_parallel_size=parallel.pipeline
    )
    if on_cuda:
        model_parallel_cuda_manual_seed(0)  # nothing draws from it: dropout is 0 and weights are loaded
    yield _place(torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu"))
    # Only after success: a rank that fails must not wait here for peers that sit in a collective.
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _place(device: torch.device) -> Place:
    is_last_stage = parallel_state.is_pipeline_last_stage()
    return Place(
        rank=dist.get_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        is_last_stage=is_last_stage,
        holds_results=is_last_stage and parallel_state.get_tensor_model_parallel_rank() == 0,
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        device=device,
    )
