"""What stops training before a wrong update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.pairs import hurtful_pairs
from support.places import place
from support.ranks import on_ranks

from irpo_megatron.config import LossConfig
from irpo_megatron.engine.optimizer import NonFiniteGradient
from irpo_megatron.training import step
from irpo_megatron.training.batches import Batching, PairBatch, WeightedPair, pair_batch
from irpo_megatron.training.step import NonFiniteStep, ReferenceMismatch, require_ln2, train_step

LN_2 = math.log(2)


@pytest.mark.parametrize(
    ("dpo", "tolerance"),
    [(LN_2, 1e-5), (LN_2 + 9e-6, 1e-5), (LN_2 - 9e-6, 1e-5), (LN_2 + 0.03, 0.031), (0.68, 0.031)],
)
def test_ln_2_passes(dpo: float, tolerance: float) -> None:
    require_ln2(dpo, tolerance=tolerance)


@pytest.mark.parametrize(
    ("dpo", "tolerance"), [(LN_2 + 2e-5, 1e-5), (0.68, 1e-5), (0.66, 0.031), (math.nan, 1e-5), (math.nan, 1e9)]
)
def test_anything_else_means_that_the_reference_is_another_model(dpo: float, tolerance: float) -> None:
    with pytest.raises(ReferenceMismatch, match=rf"must be ln 2 = 0\.6931472 within {tolerance}:"):
        require_ln2(dpo, tolerance=tolerance)


# A step on two data-parallel ranks, whose model and optimizer only say what they are asked


class _Optimizer:
    """Counts its steps."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.model: list[Any] = []
        self.steps = 0
        self._failure = failure

    def zero_gradients(self) -> None:
        pass

    def step(self) -> tuple[float, float]:
        if self._failure is not None:
            raise self._failure
        self.steps += 1
        return 1.5, 1e-6


def _micro_batches(rank: int, *, with_rejected: bool) -> list[PairBatch]:
    """Pairs 0 and 1 in one micro-batch, 2 in another on rank 0; 3 and 4 in one on rank 1, with a filler."""
    items = [
        WeightedPair(pair=pair, weight=float(index < 5), reference_chosen=-2.0, reference_rejected=-3.0)
        for index, pair in enumerate(hurtful_pairs(6, vocabulary=9))
    ]
    batching = Batching(shared_prompt=True, pairs_a_micro_batch=None, tokens_a_micro_batch=1)
    return [
        pair_batch(part, batching, place(), lambda *_: torch.zeros(0), with_rejected=with_rejected)
        for part in ([items[:2], items[2:3]], [items[3:5], items[5:]])[rank]
    ]


def _step(
    pair: int | None, failure: Exception | None, tolerance: float | None, with_rejected: bool, shift: float = 0.0
) -> tuple[str, int, dict[str, float], float]:
    """(what was raised, optimizer steps, means, this rank's loss); the chosen one of `pair` has no finite log-prob.

    Log-probs are those of the reference plus a shift of the chosen ones.
    """
    rank = dist.get_rank()
    broken = f"train-{pair:06d}/000" if pair is not None else ""

    def forward_backward(
        _: object, batches: Sequence[PairBatch], loss: Callable[..., Any], *, forward_only: bool
    ) -> list[Any]:
        assert not forward_only
        kept = []
        for batch in batches:
            # One token carries the whole completion's log-prob.
            tokens = torch.zeros(len(batch.targets.tokens))
            for index, name in enumerate(batch.pair_ids):
                for offset, log_prob in enumerate((-2.0 + shift, -3.0)[: 1 + with_rejected]):
                    mine = batch.sequences.completion_of == (1 + with_rejected) * index + offset
                    tokens[mine.nonzero()[0]] = math.nan if name == broken and offset == 0 else log_prob
            value, of_batch = loss(batch, tokens)
            kept.append(of_batch)
            losses.append(float(value))
        return kept

    losses: list[float] = []
    step.forward_backward = forward_backward  # type: ignore[assignment]
    optimizer: Any = _Optimizer(failure)
    said, means = "", {}
    try:
        means = train_step(
            optimizer,
            _micro_batches(rank, with_rejected=with_rejected),
            loss=LossConfig(alpha=1.0, beta=0.5),
            pairs_in_global_batch=5,
            place=place(rank=rank, data=2, data_rank=rank),
            step_zero_tolerance=tolerance,
        ).means
    except (NonFiniteStep, ReferenceMismatch) as error:
        said = f"{type(error).__name__}: {error}"
    return said, optimizer.steps, means, sum(losses)


def test_means_are_over_the_pairs_of_the_global_batch_and_fillers_add_nothing() -> None:
    """Pair 5 is a filler; a shift of the chosen by 0.2 makes every margin 0.1."""
    pairs = hurtful_pairs(5, vocabulary=9)
    nll = sum(1.8 / len(pair.chosen_ids) for pair in pairs) / 5
    dpo = math.log(1 + math.exp(-0.1))
    by_rank = on_ranks(2, _step, None, None, None, True, 0.2)
    assert sum(loss for *_, loss in by_rank) == pytest.approx(dpo + nll), "what is differentiated adds up to the mean"
    for said, steps, means, _ in by_rank:
        assert (said, steps) == ("", 1)
        assert means == pytest.approx(
            {
                "loss": dpo + nll,
                "dpo": dpo,
                "nll": nll,
                "chosen_log_prob": -1.8,
                "rejected_log_prob": -3.0,
                "margin": 0.1,
                "accuracy": 1.0,
            }
        )


@pytest.mark.parametrize("with_rejected", [True, False])
@pytest.mark.parametrize("pair", [1, 4])
def test_a_loss_that_is_not_finite_names_its_pair_on_every_rank(pair: int, with_rejected: bool) -> None:
    expected = f"NonFiniteStep: the loss is not finite for the pairs train-{pair:06d}/000; nothing was updated"
    for said, steps, means, _ in on_ranks(2, _step, pair, None, None, with_rejected):
        assert (said, steps, means) == (expected, 0, {})


def test_a_gradient_that_is_not_finite_names_the_batch() -> None:
    pairs = ", ".join(f"train-{index:06d}/000" for index in range(6))
    failure = NonFiniteGradient("gradient norm is inf")
    for said, *_ in on_ranks(2, _step, None, failure, None, True):
        assert said == (
            "NonFiniteStep: gradient norm is inf; each pair's loss is finite; "
            f"the batch held the pairs {pairs}; nothing was updated"
        )


@pytest.mark.parametrize(
    ("shift", "tolerance", "with_rejected", "is_refused"),
    [
        (0.0, 1e-5, True, False),
        (0.2, 1e-5, True, True),  # margins of 0.1: the term is 0.644
        (0.2, 0.06, True, False),
        (0.2, None, True, False),  # not the first step
        (0.2, 1e-5, False, False),  # no reference
    ],
)
def test_the_first_step_is_checked_before_the_update(
    shift: float, tolerance: float | None, with_rejected: bool, is_refused: bool
) -> None:
    for said, steps, *_ in on_ranks(2, _step, None, None, tolerance, with_rejected, shift):
        assert said.startswith("ReferenceMismatch: the DPO term at step 0 is 0.6443967") == is_refused
        assert steps == (0 if is_refused else 1)
