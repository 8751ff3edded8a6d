"""One pass over micro-batches by Megatron-Core's pipeline schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func


class HasSequences(Protocol):
    """What the model reads of a micro-batch."""

    @property
    def tokens(self) -> torch.Tensor: ...

    @property
    def positions(self) -> torch.Tensor: ...


Batch = TypeVar("Batch")
Kept = TypeVar("Kept")
LossFunction = Callable[[Batch, torch.Tensor], tuple[torch.Tensor, Kept]]


def forward_backward(
    model: torch.nn.Module,
    micro_batches: Sequence[Batch],
    sequences_of: Callable[[Batch], HasSequences],
    loss: LossFunction[Batch, Kept],
    *,
    forward_only: bool,
) -> list[Kept]:
    """Run every micro-batch forward and, unless `forward_only`, backward; gradients add up in the model.

    Args:
        model: This rank's part, as `build_model` or the optimizer's wrapper gives it.
        sequences_of: The inputs of a micro-batch.
        loss: (micro-batch, logits [b, s, vocabulary / TP]) -> (a scalar whose gradient is wanted, what to keep of it).
            Called on the last pipeline stage only.
        forward_only: Compute no gradients.

    Returns:
        What `loss` kept of each micro-batch, in their order; empty on the earlier pipeline stages.
    """

    def loss_of_output(batch: Batch, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Kept]:
        value, kept = loss(batch, logits)
        # The middle value is Megatron's count of tokens: it only feeds a division that `sum_gradients` switches off.
        return value, torch.zeros([], dtype=torch.int, device=value.device), kept

    def forward_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        batch = next(batches)
        sequences = sequences_of(batch)
        output = model(sequences.tokens, sequences.positions, None)
        return output, partial(loss_of_output, batch)

    # The schedules themselves leave gradients on, and what is kept would hold on to the graph of every micro-batch.
    with torch.set_grad_enabled(not forward_only):
        kept: list[Kept] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=[model],
            num_microbatches=len(micro_batches),
            # Stages tell each other the real shapes (`variable_seq_lengths`); these two are only hints.
            seq_length=max(sequences_of(batch).tokens.shape[1] for batch in micro_batches),
            micro_batch_size=sequences_of(micro_batches[0]).tokens.shape[0],
            forward_only=forward_only,
        )
    return kept
