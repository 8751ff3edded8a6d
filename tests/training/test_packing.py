"""Which rank and which micro-batch computes what: every item once, and never more work than the rule allows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from irpo_megatron.training.packing import chunk, pack, share_evenly

lengths = st.lists(st.integers(1, 60), max_size=30)


def _first_fit_decreasing(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """The rule in its plainest form: take the longest that is left, try the bins from the first on."""
    left = list(enumerate(tokens))
    bins: list[list[tuple[int, int]]] = []
    while left:
        longest = max(size for _, size in left)
        item = next(item for item in left if item[1] == longest)
        left.remove(item)
        for members in bins:
            if sum(size for _, size in members) + item[1] <= budget:
                members.append(item)
                break
        else:
            bins.append([item])
    return [[index for index, _ in members] for members in bins]


@given(lengths, st.integers(1, 80))
def test_packing_is_first_fit_decreasing(tokens: list[int], budget: int) -> None:
    assert pack(tokens, budget) == _first_fit_decreasing(tokens, budget)


@given(lengths, st.integers(1, 80))
def test_every_item_is_packed_once_and_the_budget_is_kept_unless_an_item_is_alone(
    tokens: list[int], budget: int
) -> None:
    bins = pack(tokens, budget)
    assert sorted(itertools.chain.from_iterable(bins)) == list(range(len(tokens)))
    for members in bins:
        assert len(members) == 1 or sum(tokens[index] for index in members) <= budget
    loads = [sum(tokens[index] for index in members) for members in bins]
    assert all(one + other > budget for one, other in itertools.combinations(loads, 2)), "no two bins make one"


def test_packing_worked_by_hand() -> None:
    # 9 alone over the budget; 6 with 2; 5 with 3; 4 and 1 are left.
    assert pack([3, 6, 9, 2, 5, 4, 1], budget=8) == [[2], [1, 3], [4, 0], [5, 6]]
    assert pack([2, 2, 2], budget=4) == [[0, 1], [2]], "the first of equals comes first"
    assert pack([], budget=4) == []


@given(lengths, st.integers(1, 6))
def test_every_item_goes_to_one_rank_and_none_is_idle_while_items_are_left(tokens: list[int], ranks: int) -> None:
    shares = share_evenly(tokens, ranks)
    assert len(shares) == ranks
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(len(tokens)))
    assert sum(bool(share) for share in shares) == min(len(tokens), ranks)
    for share in shares:
        assert [tokens[index] for index in share] == sorted((tokens[index] for index in share), reverse=True)


@given(lengths, st.integers(1, 6))
def test_no_rank_has_more_to_do_than_another_would_without_its_shortest_item(tokens: list[int], ranks: int) -> None:
    """It was given that item when it had the least to do of all."""
    shares = share_evenly(tokens, ranks)
    loads = [sum(tokens[index] for index in share) for share in shares]
    for share, load in zip(shares, loads, strict=True):
        assert not share or load - tokens[share[-1]] <= min(loads)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_the_busiest_rank_is_within_a_third_of_the_best_possible(tokens: list[int], ranks: int) -> None:
    """Graham's bound for longest-first, 4/3 - 1/(3 ranks), against every way to deal the items out."""
    best = min(
        max(sum(size for size, rank in zip(tokens, dealt, strict=True) if rank == one) for one in range(ranks))
        for dealt in itertools.product(range(ranks), repeat=len(tokens))
    )
    busiest = max(sum(tokens[index] for index in share) for share in share_evenly(tokens, ranks))
    assert 3 * ranks * busiest <= (4 * ranks - 1) * best


@given(lengths, st.integers(1, 7))
def test_chunks_put_neighbours_in_length_together(tokens: list[int], size: int) -> None:
    chunks = chunk(tokens, size)
    order = list(itertools.chain.from_iterable(chunks))
    assert sorted(order) == list(range(len(tokens)))
    assert [tokens[index] for index in order] == sorted(tokens, reverse=True)
    assert all(len(members) == size for members in chunks[:-1])
    assert all(1 <= len(members) <= size for members in chunks)
