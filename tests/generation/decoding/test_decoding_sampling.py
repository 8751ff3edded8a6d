"""The choice of a token, against other ways to compute the same thing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irpo_megatron.generation.decoding.sampling import (
    ErrorBounds,
    error_unit,
    greedy,
    measure_errors,
    nucleus,
    sample,
    uniform,
)

# splitmix64 with the seed 1234567: the outputs that its reference implementation prints.
SPLITMIX64 = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)
BOUNDS = ErrorBounds(largest=512.0, spread=512.0)
LOGITS = (1.5, -0.5, 0.0, 2.0, -3.0, 0.5)
# Quantile 0.999 of chi-square by degrees of freedom.
CHI_SQUARE_LIMIT = {3: 16.27, 5: 20.52, 19: 43.82}


def chi_square(counts: list[int], probabilities: list[float]) -> float:
    total = sum(counts)
    return sum((count - total * p) ** 2 / (total * p) for count, p in zip(counts, probabilities, strict=True))


def softmax(values: tuple[float, ...], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in values]
    return [weight / sum(weights) for weight in weights]


def smallest_set(logits: Sequence[float], probabilities: list[float], top_p: float) -> set[int]:
    """The nucleus by its definition: take tokens from the top until they have `top_p`.

    The logits say which is the top: two of them may differ and yet have probabilities that are rounded to the same.
    """
    taken: set[int] = set()
    for token in sorted(range(len(logits)), key=lambda token: (-logits[token], token)):
        taken.add(token)
        if math.fsum(probabilities[token] for token in taken) >= top_p:
            break
    return taken


def draws(logits: tuple[float, ...], count: int, *, temperature: float, top_p: float = 1.0) -> list[int]:
    """`count` draws, each with a seed of its own."""
    uniforms = uniform(torch.arange(count) * 7919 + 11, torch.full((count,), 3))
    rows = torch.tensor(logits).expand(count, -1)
    return sample(rows, uniforms, BOUNDS, temperature=temperature, top_p=top_p)[0].tolist()


def test_uniform_is_splitmix64() -> None:
    seed = torch.tensor([1234567])
    assert [uniform(seed, torch.tensor([position])).item() for position in range(5)] == [
        (x >> 11) * 2.0**-53 for x in SPLITMIX64
    ]


def test_uniform_is_uniform_over_positions_and_over_seeds() -> None:
    one_seed = uniform(torch.tensor([2**62 + 5]), torch.arange(4000))
    one_position = uniform(torch.arange(4000), torch.tensor([0]))
    for numbers in (one_seed, one_position):
        counts = torch.histc(numbers, bins=20, min=0, max=1).int().tolist()
        assert chi_square(counts, [1 / 20] * 20) < CHI_SQUARE_LIMIT[19]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax_at_a_temperature(temperature: float) -> None:
    tokens = draws(LOGITS, 20_000, temperature=temperature)
    counts = [tokens.count(token) for token in range(len(LOGITS))]
    assert chi_square(counts, softmax(LOGITS, temperature)) < CHI_SQUARE_LIMIT[5]
    assert chi_square(counts, softmax(LOGITS, temperature * 1.2)) > CHI_SQUARE_LIMIT[5]


def test_draws_follow_the_softmax_within_the_nucleus() -> None:
    tokens = draws(LOGITS, 20_000, temperature=1.0, top_p=0.9)
    kept = sorted(smallest_set(LOGITS, softmax(LOGITS, 1.0), 0.9))
    assert kept == [0, 2, 3, 5]
    assert set(tokens) == set(kept)
    inside = [softmax(LOGITS, 1.0)[token] for token in kept]
    expected = [p / sum(inside) for p in inside]
    assert chi_square([tokens.count(token) for token in kept], expected) < CHI_SQUARE_LIMIT[3]


def test_tokens_lie_on_the_unit_interval_in_the_order_of_their_ids() -> None:
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(4, -1)
    uniforms = torch.tensor([0.0, 0.26, 0.74, 0.9], dtype=torch.float64)
    assert sample(logits, uniforms, BOUNDS, temperature=1.0, top_p=1.0)[0].tolist() == [0, 1, 1, 2]


def test_the_largest_uniform_stays_inside_the_nucleus() -> None:
    logits = torch.tensor([[3.0, 2.0, -9.0, -9.0]])
    largest = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert sample(logits, largest, BOUNDS, temperature=1.0, top_p=0.99)[0].tolist() == [1]


def test_greedy_takes_the_lowest_of_equal_tokens_and_calls_it_uncertain() -> None:
    tokens, certain = greedy(torch.tensor([[0.0, 2.0, 2.0], [0.0, 1.0, 2.0], [2.0, 2.0 - 1e-6, 0.0]]), BOUNDS)
    assert tokens.tolist() == [1, 2, 0]
    assert certain.tolist() == [False, True, False]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_no_choice_from_broken_logits_is_certain(broken: float) -> None:
    logits = torch.tensor([[0.0, broken, 1.0], [0.0, 5.0, 1.0]])
    uniforms = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert greedy(logits, BOUNDS)[1].tolist() == [False, True]
    assert sample(logits, uniforms, BOUNDS, temperature=1.0, top_p=1.0)[1].tolist() == [False, True]
    assert sample(logits, uniforms, BOUNDS, temperature=1.0, top_p=0.9)[1].tolist() == [False, True]


def test_a_peaked_distribution_is_certain_almost_to_its_ends() -> None:
    logits = torch.tensor([[0.0, 20.0, 0.0]]).expand(3, -1)
    uniforms = torch.tensor([1e-6, 0.5, 1 - 1e-6], dtype=torch.float64)
    assert sample(logits, uniforms, BOUNDS, temperature=1.0, top_p=1.0)[1].all()


logit_rows = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


@settings(deadline=None)
@given(row=logit_rows, top_p=st.floats(0.01, 0.999), temperature=st.sampled_from([0.3, 1.0, 2.0]))
def test_nucleus_is_the_smallest_set(row: list[float], top_p: float, temperature: float) -> None:
    scaled = torch.tensor([row]).double() / temperature
    probabilities = scaled.softmax(dim=-1)
    kept, doubtful = nucleus(scaled, probabilities, torch.zeros(1, dtype=torch.float64), top_p)
    if doubtful.item() == 0:
        assert set(kept[0].nonzero().flatten().tolist()) == smallest_set(
            scaled[0].tolist(), probabilities[0].tolist(), top_p
        )


@pytest.mark.parametrize(("gap", "in_doubt"), [(1.5, [0, 1, 2]), (3.0, [])])
def test_tokens_that_an_error_could_swap_at_the_edge_are_in_doubt(gap: float, in_doubt: list[int]) -> None:
    error = 1e-3
    scaled = torch.tensor([[0.0, gap * error, -gap * error, -4.0]], dtype=torch.float64)
    probabilities = scaled.softmax(dim=-1)
    kept, doubtful = nucleus(scaled, probabilities, torch.tensor([error]).double(), 0.5)
    assert kept.tolist() == [[True, True, False, False]]
    assert doubtful.item() == pytest.approx(probabilities[0, in_doubt].sum().item())


# Logits so close that an error may turn them round: units of the bound for logits around 1.
near_ties = st.lists(
    st.builds(lambda level, units: level + units * 3e-5, st.sampled_from([-1.0, 0.0, 1.0]), st.integers(-6, 6)),
    min_size=2,
    max_size=12,
)

# The errors that move the boundary between token ids the furthest.
opposed_signs = st.builds(
    lambda count, sign: [sign] * count + [-sign] * (12 - count), st.integers(0, 12), st.sampled_from([-1.0, 1.0])
)


@settings(max_examples=500, deadline=None)
@given(
    row=logit_rows | near_ties,
    signs=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=12, max_size=12) | opposed_signs,
    boundary=st.integers(0, 11),
    offset=st.floats(-3, 3),
    top_p=st.sampled_from([1.0, 0.95, 0.8, 0.5]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_a_certain_choice_survives_any_error_within_the_bound(
    row: list[float], signs: list[float], boundary: int, offset: float, top_p: float, temperature: float
) -> None:
    logits = torch.tensor([row])
    error = BOUNDS.largest * error_unit(logits)
    # float64, so that the error is not rounded away; a little inside the bound, which is that of the first logits.
    moved = logits.double() + 0.999 * error * torch.tensor(signs[: len(row)]).double()
    bounds = ErrorBounds(BOUNDS.largest, 1.001 * measure_errors(logits, moved, temperature).spread)

    token, certain = greedy(logits, BOUNDS)
    if certain.item():
        assert greedy(moved, BOUNDS)[0].item() == token.item()

    # A uniform number beside a boundary of the CDF, at a distance of the order of the margin or anywhere.
    scaled = logits.double() / temperature
    weights = scaled.softmax(dim=-1)
    if top_p < 1:
        weights = weights * nucleus(scaled, weights, error / temperature, top_p)[0]
    cumulative = weights[0].cumsum(0) / weights.sum()
    beside = cumulative[boundary % len(row)] + offset * error / temperature
    for uniforms in (beside.clamp(0, 1 - 2.0**-53), torch.tensor([abs(offset) / 3.001], dtype=torch.float64)):
        token, certain = sample(logits, uniforms, bounds, temperature=temperature, top_p=top_p)
        if certain.item():
            assert sample(moved, uniforms, bounds, temperature=temperature, top_p=top_p)[0].item() == token.item()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_error_bound_is_tight_enough_to_be_cheap(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5000, 30, generator=generator) * 3
    uniforms = uniform(torch.arange(5000), torch.tensor([0]))
    _, certain = sample(logits, uniforms, BOUNDS, temperature=1.0, top_p=top_p)
    assert certain.double().mean() > 0.97


def test_errors_that_differ_little_leave_less_in_doubt() -> None:
    logits = torch.randn(5000, 30, generator=torch.Generator().manual_seed(0))
    uniforms = uniform(torch.arange(5000), torch.tensor([0]))
    doubtful = [
        (~sample(logits, uniforms, ErrorBounds(4096.0, spread), temperature=1.0, top_p=1.0)[1]).double().mean().item()
        for spread in (4096.0, 512.0)
    ]
    assert 0 < doubtful[1] < doubtful[0] / 3


def test_errors_are_machine_epsilons_of_the_largest_logit() -> None:
    exact = torch.tensor([[4.0, -8.0], [0.25, 0.5]], dtype=torch.float64)
    logits = exact.float() + torch.tensor([[2.0**-18, 0.0], [0.0, 2.0**-20]])
    # Epsilon is 2^-23; the largest logits are 8 and, since it is below, 1.
    assert error_unit(logits).tolist() == [8 * 2.0**-23, 2.0**-23]
    # The deviation of an error that one of two tokens has alone is sqrt(p (1 - p)) of it.
    errors = [(2.0**-18 / 8 * 2**23, softmax((4.0, -8.0), 0.5)[0]), (2.0**-20 * 2**23, softmax((0.25, 0.5), 0.5)[0])]
    measured = measure_errors(logits, exact, 0.5)
    assert measured.largest == pytest.approx(max(error for error, _ in errors))
    assert measured.spread == pytest.approx(max(error * math.sqrt(p * (1 - p)) for error, p in errors))
    assert measure_errors(logits, exact, 0.0).spread == measured.largest
