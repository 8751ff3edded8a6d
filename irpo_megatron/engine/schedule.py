"""One pass over micro-batches by Megatron-Core's pipeline schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from irpo_megatron.engine.inputs import ModelInput
from irpo_megatron.engine.policy import Targets


class HasInput(Protocol):
    """What the model reads of a micro-batch."""

    @property
    def input(self) -> ModelInput: ...

    @property
    def targets(self) -> Targets: ...


Batch = TypeVar("Batch", bound=HasInput)
Kept = TypeVar("Kept")
LossFunction = Callable[[Batch, torch.Tensor], tuple[torch.Tensor, Kept]]


def forward_backward(
    model: Sequence[torch.nn.Module],
    micro_batches: Sequence[Batch],
    loss: LossFunction[Batch, Kept],
    *,
    forward_only: bool,
) -> list[Kept]:
    """Run every micro-batch forward and, unless `forward_only`, backward; gradients add up in the model.

    Args:
        model: This rank's groups of layers, as `build_model` or the optimizer's wrapper gives them.
        micro_batches: At least one. An interleaved pipeline takes a multiple of its stages.
        loss: (micro-batch, log-probs of this rank's targets [n]) -> (a scalar whose gradient is wanted, what to keep
            of it). Called on the last pipeline stage only.
        forward_only: Compute no gradients.

    Returns:
        What `loss` kept of each micro-batch, in their order; empty on the earlier pipeline stages.
    """

    def loss_of_output(batch: Batch, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Kept]:
        value, kept = loss(batch, log_probs)
        # The middle value is Megatron's count of tokens: it only feeds a division that `sum_gradients` switches off.
        return value, torch.zeros([], dtype=torch.int, device=value.device), kept

    def forward_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        batch = next(batches)
        output = model(
            batch.input.tokens,
            batch.input.positions,
            None,
            labels=batch.targets,
            packed_seq_params=batch.input.attention,
        )
        return output, partial(loss_of_output, batch)

    # The schedules themselves leave gradients on, and what is kept would hold on to the graph of every micro-batch.
    with torch.set_grad_enabled(not forward_only):
        kept: list[Kept] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(micro_batches) for _ in model],
            model=list(model),
            num_microbatches=len(micro_batches),
            # Stages tell each other the real shapes (`variable_seq_lengths`); these two are only hints.
            seq_length=max(batch.input.tokens.shape[1] for batch in micro_batches),
            micro_batch_size=1,
            forward_only=forward_only,
        )
    return kept
