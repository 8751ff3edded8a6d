"""Process groups: who this process is among tensor, context, pipeline and data parallelism."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from irpo_megatron.artifacts import Json
from irpo_megatron.config import ParallelConfig, PrecisionConfig
from irpo_megatron.engine.cpu import answer_for_cuda
from irpo_megatron.engine.precision import check_precision, uses_transformer_engine
from irpo_megatron.rank_log import note

# FP8 matrix products want both dimensions in whole blocks.
_FP8_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands in the layout, and the groups that the method needs by name."""

    layout: ParallelConfig
    precision: PrecisionConfig
    rank: int
    data_rank: int
    context_rank: int
    is_last_stage: bool
    """It holds the output layer, so losses and log-probs exist here."""
    holds_results: bool
    """Of the processes that computed the same losses (tensor and context parallel), the one that speaks for them."""
    tensor_group: dist.ProcessGroup
    context_group: dist.ProcessGroup
    device: torch.device
    transformer_engine: bool
    """Its layers are in use, rather than the project's own on plain torch."""

    @property
    def is_main(self) -> bool:
        """Rank 0 writes what is written once: metrics, progress, renames."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        return self.layout.data

    @property
    def context_size(self) -> int:
        return self.layout.context

    @property
    def micro_batch_group(self) -> int:
        """A rank's micro-batches come in multiples of this: an interleaved pipeline sends them round in groups."""
        return self.layout.pipeline if self.layout.virtual_pipeline > 1 else 1

    @property
    def can_share_prompts(self) -> bool:
        """Whether the attention in use lets two completions attend to one prompt."""
        return not self.transformer_engine

    @property
    def piece_multiple(self) -> int:
        """Every sequence of a stream has a length that this divides: Transformer Engine cuts each in 2 x CP chunks."""
        return 2 * self.context_size if self.transformer_engine and self.context_size > 1 else 1

    @property
    def stream_multiple(self) -> int:
        """A stream has a length that this divides, so that every rank's part of it is equally long."""
        context = 2 * self.context_size if self.context_size > 1 else 1
        sequence = self.layout.tensor if self.layout.sequence else 1
        blocks = _FP8_TOKENS if self.precision.fp8 is not None else 1
        return context * sequence * blocks

    def describe(self) -> Json:
        """Where this process stands, for its log."""
        return {
            "layout": self.layout.model_dump(),
            "data_rank": self.data_rank,
            "context_rank": self.context_rank,
            "tensor_rank": self.tensor_group.rank(),
            "pipeline_rank": parallel_state.get_pipeline_model_parallel_rank(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "transformer_engine": self.transformer_engine,
        }

    def peak_bytes(self) -> int:
        """The most memory that this process has held: the device's, or where there is none the machine's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; the same answer on all."""
        answer = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return bool(answer)

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
def parallel_world(
    parallel: ParallelConfig,
    *,
    threads: int,
    precision: PrecisionConfig = PrecisionConfig(),  # noqa: B008 (frozen)
    timeout: timedelta = timedelta(minutes=30),
) -> Iterator[Place]:
    """Join the process groups of a layout for the length of a `with` block.

    The launcher's environment says rank and world size (torchrun's `RANK`, `WORLD_SIZE`, ...); a layout of one process
    needs neither launcher nor network. NCCL where CUDA is present, Gloo elsewhere.

    Args:
        threads: CPU threads of this process.
        precision: What the model will compute with.
        timeout: After how long a collective that waits for a peer gives up.

    Raises:
        UserError: this machine cannot compute with `precision`.
    """
    check_precision(precision)
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
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)
    assert dist.get_world_size() == parallel.world_size, (
        f"{dist.get_world_size()} processes were started for a layout of {parallel.world_size}"
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        distributed_timeout_minutes=max(1, math.ceil(timeout / timedelta(minutes=1))),
    )
    if on_cuda:
        model_parallel_cuda_manual_seed(0)  # nothing draws from it: dropout is 0 and weights are loaded
    device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
    place = _place(parallel, precision, device)
    note("joined", backend=backend, **place.describe())
    yield place
    # Only after success: a rank that fails must not wait here for peers that sit in a collective.
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _place(parallel: ParallelConfig, precision: PrecisionConfig, device: torch.device) -> Place:
    is_last_stage = parallel_state.get_pipeline_model_parallel_rank() == parallel.pipeline - 1
    context_rank = parallel_state.get_context_parallel_rank()
    return Place(
        layout=parallel,
        precision=precision,
        rank=dist.get_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        context_rank=context_rank,
        is_last_stage=is_last_stage,
        holds_results=is_last_stage and context_rank == 0 and parallel_state.get_tensor_model_parallel_rank() == 0,
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        context_group=parallel_state.get_context_parallel_group(),
        device=device,
        transformer_engine=uses_transformer_engine(precision),
    )
