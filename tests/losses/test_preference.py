"""Equation 1, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.losses.preference import dpo_margin, dpo_term, nll_term


def _margin(
    chosen: float, rejected: float, reference_chosen: float, reference_rejected: float, beta: float
) -> torch.Tensor:
    return dpo_margin(
        chosen=torch.tensor([chosen], dtype=torch.float64),
        rejected=torch.tensor([rejected], dtype=torch.float64),
        reference_chosen=torch.tensor([reference_chosen], dtype=torch.float64),
        reference_rejected=torch.tensor([reference_rejected], dtype=torch.float64),
        beta=beta,
    )


def test_a_pair_worked_by_hand() -> None:
    # beta [(-10 + 12) - (-20 + 19)] = 0.1 x 3; -log sigmoid(0.3) = log(1 + e^-0.3)
    margin = _margin(-10.0, -20.0, -12.0, -19.0, 0.1)
    assert margin.item() == pytest.approx(0.3)
    assert dpo_term(margin).item() == pytest.approx(0.5543552444685272)
    assert nll_term(torch.tensor([-10.0]), torch.tensor([4.0])).item() == 2.5


log_prob = st.floats(min_value=-500, max_value=0)


@given(log_prob, log_prob, st.floats(min_value=0.01, max_value=5))
def test_policy_equal_to_reference_gives_ln_2_exactly(chosen: float, rejected: float, beta: float) -> None:
    assert dpo_term(_margin(chosen, rejected, chosen, rejected, beta)).item() == pytest.approx(math.log(2), abs=1e-15)


@given(log_prob, log_prob, log_prob, log_prob, st.floats(min_value=0.01, max_value=1))
def test_swapping_winner_and_loser_turns_the_margin_round(a: float, b: float, c: float, d: float, beta: float) -> None:
    assert _margin(a, b, c, d, beta).item() == pytest.approx(-_margin(b, a, d, c, beta).item(), abs=1e-9)


def test_extreme_margins_stay_finite() -> None:
    terms = dpo_term(torch.tensor([-1e4, 0.0, 1e4]))
    assert terms.tolist() == pytest.approx([1e4, math.log(2), 0.0])
