"""Intervals, votes and pass@k against numbers from elsewhere: tables, enumeration, simulation."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.evaluation.metrics import majority_correct, pass_at_k, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3: the score interval without correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_inverts_the_score_test(counts: tuple[int, int]) -> None:
    """Its ends are the shares p0 from which the observed one is exactly z standard errors of p0 away."""
    successes, n = counts
    observed = successes / n
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= observed <= high <= 1
    for end in (low, high):
        distance, error = abs(observed - end), math.sqrt(end * (1 - end) / n)
        # At 0 and at n successes one end coincides with the observed share itself.
        assert distance == pytest.approx(1.959963984540054 * error, abs=1e-9)


def test_wilson_interval_widens_with_confidence() -> None:
    (low, high), (lower, higher) = wilson_interval(7, 10, 0.9), wilson_interval(7, 10, 0.99)
    assert lower < low < high < higher


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_of_nonsense(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
        wilson_interval(successes, n)


@pytest.mark.parametrize(
    ("votes", "right"),
    [
        ([("18", True)], True),
        ([("18", True), ("17", False), ("17", False)], False),
        ([("17", False), ("18", True), ("18", True)], True),
        ([("17", False), ("18", True)], False),
        ([("18", True), ("17", False)], True),
        ([("17", False), ("18", True), ("18", True), ("17", False)], False),
        ([(None, False), (None, False), ("18", True)], True),
        ([(None, False)], False),
        ([], False),
        # One answer worded in two ways, of which grading accepts the second only: the first verdict holds.
        ([("18", False), ("18", True)], False),
    ],
)
def test_majority(votes: list[tuple[str | None, bool]], right: bool) -> None:
    assert majority_correct(votes) is right


def test_majority_over_every_vote_of_up_to_five() -> None:
    """Against a ranking of the answers by votes, then by first place."""
    for n in range(1, 6):
        for answers in itertools.product(("a", "b", "c", None), repeat=n):
            for right in ("a", "b", "c"):
                ballots = [answer for answer in answers if answer is not None]
                ranked = sorted(set(ballots), key=lambda a: (-ballots.count(a), ballots.index(a)))
                expected = bool(ranked) and ranked[0] == right
                assert majority_correct([(answer, answer == right) for answer in answers]) is expected


def test_majority_of_no_ballots_is_wrong_however_many_samples() -> None:
    assert [majority_correct([(None, False)] * n) for n in range(1, 9)] == [False] * 8


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over n samples of chance p is exactly 1 - (1 - p)^k; that of 1 - (1 - c/n)^k is not."""
    n, p = 6, 0.3
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for k in range(1, n + 1):
        estimated = sum(chance[c] * pass_at_k(n, c, k) for c in range(n + 1))
        assert estimated == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [(10, 3, 1, 0.3), (10, 0, 5, 0.0), (10, 10, 1, 1.0), (4, 1, 4, 1.0), (5, 2, 2, 0.7), (1000, 1, 1000, 1.0)],
)
def test_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_of_nonsense(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {c} right among {n} samples"):
        pass_at_k(n, c, k)
