"""FLOPs of a pass, a multiplication and an addition each: what `torch.utils.flop_counter` counts.

Matrix products and attention; norms, activations, softmax and AdamW are left out. Attention counts every score, masked
ones too, as that counter does: kernels skip most of the masked half, so it errs upwards there. Its backward pass makes
the scores again: five products where the forward pass has two.
"""

from __future__ import annotations

from dataclasses import dataclass

from irpo_megatron.planning.batches import MicroBatch
from irpo_megatron.planning.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of a micro-batch through the whole model, or of many."""

    matrices: float
    """The layers' matrix products."""
    attention: float
    output: float
    """The output matrix, for completion tokens only."""

    @property
    def total(self) -> float:
        return self.matrices + self.attention + self.output


def forward_flops(shape: Shape, batch: MicroBatch) -> Flops:
    """One forward pass."""
    return Flops(
        matrices=2 * shape.layers * shape.matrix_parameters * batch.tokens,
        attention=4 * shape.layers * shape.query_width * batch.scores,
        output=2 * shape.hidden_size * shape.vocabulary * batch.predicted,
    )


def training_flops(shape: Shape, batch: MicroBatch, *, recompute: str = "none", logits_again: bool = False) -> Flops:
    """A forward and a backward pass.

    Args:
        recompute: `training.recompute`.
        logits_again: They do not all fit into `training.log_prob_mib`, so the backward pass makes them again.
    """
    forward = forward_flops(shape, batch)
    return Flops(
        matrices=forward.matrices * (4 if recompute == "full" else 3),
        attention=forward.attention * (3.5 if recompute == "none" else 4.5),
        output=forward.output * (4 if logits_again else 3),
    )
