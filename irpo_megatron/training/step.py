"""One optimizer step: log-probs of the pairs, equation 1, gradients, update, metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from irpo_megatron.config import LossConfig
from irpo_megatron.engine.optimizer import NonFiniteGradient, Optimizer
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.schedule import forward_backward
from irpo_megatron.losses.preference import dpo_margin, dpo_term, nll_term
from irpo_megatron.training.batches import PairBatch

# Sums over the pairs of a batch, in the order of the metrics vector.
PAIR_METRICS = ("loss", "dpo", "nll", "chosen_log_prob", "rejected_log_prob", "margin", "accuracy")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Means over the pairs of the global batch, the same on every rank."""

    means: dict[str, float]
    gradient_norm: float
    learning_rate: float


class ReferenceMismatch(RuntimeError):
    """At step 0 policy and reference are not the same model, so every later margin would be wrong."""


class NonFiniteStep(RuntimeError):
    """The loss or its gradient is not a finite number; nothing has been updated, and the message names the pairs."""


def pair_losses(log_probs: torch.Tensor, batch: PairBatch, loss: LossConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 1 of every pair of a micro-batch.

    Args:
        log_probs: [2m] of chosen and rejected completions in turn; [m] for the methods without rejected ones.

    Returns:
        (losses [m], metrics [m, len(PAIR_METRICS)] detached, 0 where the method has no such term).
    """
    chosen, *others = log_probs.view(len(batch.pair_ids), -1).unbind(dim=1)
    nll = nll_term(chosen, batch.chosen_tokens)
    losses = loss.alpha * nll
    margin = dpo = rejected = torch.zeros_like(chosen)
    if batch.has_rejected:
        (rejected,) = others
        margin = dpo_margin(
            chosen=chosen,
            rejected=rejected,
            reference_chosen=batch.reference_chosen,
            reference_rejected=batch.reference_rejected,
            beta=loss.beta,
        )
        dpo = dpo_term(margin)
        losses = losses + dpo
    metrics = torch.stack([losses, dpo, nll, chosen, rejected, margin, (margin > 0).float()], dim=-1)
    return losses, metrics.detach()


def train_step(
    optimizer: Optimizer,
    micro_batches: Sequence[PairBatch],
    *,
    loss: LossConfig,
    pairs_in_global_batch: int,
    place: Place,
    step_zero_tolerance: float | None,
) -> StepResult:
    """Forward, backward and update over this rank's micro-batches of one global batch.

    Args:
        step_zero_tolerance: Where the policy is still M_{t-1}: how far its DPO term may be from ln 2.

    Raises:
        ReferenceMismatch: before the update, where it is not.
        NonFiniteStep: before the update, naming the pairs of this batch whose loss is not finite.
    """

    def batch_loss(batch: PairBatch, tokens: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, list[str]]]:
        log_probs = batch.sequences.completion_sums(tokens, place)
        losses, metrics = pair_losses(log_probs, batch, loss)
        is_broken = ~torch.isfinite(losses.detach())
        broken = [batch.pair_ids[index] for index in torch.nonzero(is_broken).flatten().tolist()]
        # A sum over pairs with the global denominator in it: nothing scales it afterwards (`sum_gradients`).
        return (losses * batch.weights).sum() / pairs_in_global_batch, (batch.weights @ metrics, broken)

    loss_has_reference = micro_batches[0].has_rejected
    optimizer.zero_gradients()
    kept = forward_backward(optimizer.model, micro_batches, batch_loss, forward_only=False)
    sums = torch.stack([metrics for metrics, _ in kept]).sum(0) if kept else torch.zeros(len(PAIR_METRICS))
    means = place.total(sums.to(place.device)) / pairs_in_global_batch
    if not bool(torch.isfinite(means).all()):
        raise NonFiniteStep(_name_pairs([pair for _, broken in kept for pair in broken], micro_batches))
    if step_zero_tolerance is not None and loss_has_reference:
        require_ln2(means[PAIR_METRICS.index("dpo")].item(), tolerance=step_zero_tolerance)
    try:
        gradient_norm, learning_rate = optimizer.step()
    except NonFiniteGradient as error:
        raise NonFiniteStep(f"{error}; {_name_pairs([], micro_batches)}") from error
    return StepResult(
        means=dict(zip(PAIR_METRICS, means.tolist(), strict=True)),
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
    )


def require_ln2(dpo: float, *, tolerance: float) -> None:
    """The first known answer of a run: where policy and reference are one model, -log sigmoid(0) = ln 2.

    Raises:
        ReferenceMismatch: it is off by more than `tolerance`.
    """
    if not abs(dpo - math.log(2)) <= tolerance:  # so that NaN does not pass
        raise ReferenceMismatch(
            f"the DPO term at step 0 is {dpo:.7f} and must be ln 2 = {math.log(2):.7f} within {tolerance}: "
            "the reference log-probs do not belong to the checkpoint that training started from"
        )


def _name_pairs(broken: list[str], micro_batches: Sequence[PairBatch]) -> str:
    """Say which pairs of the global batch are at fault, or at least which were in it."""
    gathered: list[tuple[list[str], list[str]]] = [([], [])] * dist.get_world_size()
    dist.all_gather_object(gathered, (broken, [pair for batch in micro_batches for pair in batch.pair_ids]))
    at_fault = sorted({pair for some, _ in gathered for pair in some})
    in_batch = sorted({pair for _, some in gathered for pair in some})
    if at_fault:
        return f"the loss is not finite for the pairs {', '.join(at_fault)}; nothing was updated"
    return f"each pair's loss is finite; the batch held the pairs {', '.join(in_batch)}; nothing was updated"
