"""The pairs of one problem: properties for all inputs, and the paper's walk by hand."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.config import PairsConfig
from irpo_megatron.pairs.build import GOLD_SAMPLE, Candidate, fault_of, limit_pairs, pair_problem, walk
from irpo_megatron.pairs.counts import Counts
from irpo_megatron.records import Pair, Sample

PROMPT_IDS = (2, 5, 6)
GOLD = Candidate(sample_index=GOLD_SAMPLE, text="gold", ids=(0, 9, 9, 9, 1))


def sample(index: int, text: str, ids: tuple[int, ...], *, truncated: bool = False) -> Sample:
    return Sample(
        prompt_id="train-000003",
        sample_index=index,
        seed=index,
        prompt="p",
        prompt_ids=PROMPT_IDS,
        completion=text,
        completion_ids=ids,
        finish_reason="length" if truncated else "stop",
    )


# Few different texts, so that repeats occur; token id 0 stands inside, and "a" is a prefix of "ab", ids included.
TEXTS = {"": (1,), "a": (0, 0, 1), "ab": (0, 0, 0, 4, 1), "b": (4, 0, 1), "c": (7,) * 9}


@st.composite
def judged_samples(draw: st.DrawFn) -> tuple[list[Sample], dict[int, bool]]:
    """Samples in any order, and verdicts that depend on the text alone, as grading does."""
    right = draw(st.sets(st.sampled_from(sorted(TEXTS))))
    texts = draw(st.lists(st.sampled_from(sorted(TEXTS)), min_size=1, max_size=12))
    cut = draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    rows = [
        sample(index, text, TEXTS[text], truncated=truncated)
        for index, (text, truncated) in enumerate(zip(texts, cut, strict=True))
    ]
    return draw(st.permutations(rows)), {row.sample_index: row.completion in right for row in rows}


def build(
    samples: list[Sample],
    correct: dict[int, bool],
    *,
    gold: Candidate | None = None,
    longest: int = 1000,
    seed: int = 0,
    held_out: bool = False,
    **settings: Any,
) -> tuple[list[Pair], Counts]:
    return pair_problem(
        samples,
        correct,
        gold=gold,
        settings=PairsConfig(**settings),
        longest=longest,
        seed=seed,
        held_out=held_out,
    )


@given(judged_samples(), st.integers(1, 20), st.booleans(), st.booleans())
def test_exactly_k_pairs_where_both_sides_are_there(
    judged: tuple[list[Sample], dict[int, bool]], k: int, with_gold: bool, deduplicate: bool
) -> None:
    samples, correct = judged
    usable = [row for row in samples if row.finish_reason == "stop" and row.completion]
    winners = {row.sample_index for row in usable if correct[row.sample_index]}
    losers = {row.sample_index for row in usable if not correct[row.sample_index]}
    pairs, counts = build(samples, correct, gold=GOLD if with_gold else None, per_prompt=k, deduplicate=deduplicate)
    assert len(pairs) == (k if losers and (winners or with_gold) else 0)
    by_index = {row.sample_index: row for row in samples}
    for number, pair in enumerate(pairs):
        assert pair.pair_id == f"train-000003/{number:03d}"
        assert pair.prompt_ids == PROMPT_IDS
        assert pair.chosen_ids != pair.rejected_ids
        assert pair.chosen_sample in winners or (with_gold and pair.chosen_sample == GOLD_SAMPLE)
        assert pair.rejected_sample in losers
        rejected = by_index[pair.rejected_sample]
        assert (pair.rejected, pair.rejected_ids) == (rejected.completion, rejected.completion_ids)
    assert_counts_add_up(counts, k)


@given(judged_samples(), st.integers(1, 20), st.integers(4, 12), st.booleans())
def test_counts_add_up_whatever_is_dropped(
    judged: tuple[list[Sample], dict[int, bool]], k: int, longest: int, deduplicate: bool
) -> None:
    twin_of_a = Candidate(sample_index=GOLD_SAMPLE, text="a", ids=TEXTS["a"])
    pairs, counts = build(*judged, gold=twin_of_a, per_prompt=k, longest=longest, deduplicate=deduplicate)
    assert_counts_add_up(counts, k)
    assert counts.pairs == len(pairs)
    assert all(fault_of(pair, longest) is None for pair in pairs)


def assert_counts_add_up(counts: Counts, k: int) -> None:
    kinds = (counts.problems_paired, counts.problems_all_right, counts.problems_all_wrong, counts.problems_unusable)
    assert counts.problems == 1 == sum(kinds)
    assert counts.samples == counts.samples_truncated + counts.samples_empty + counts.winners + counts.losers
    assert 0 <= counts.winners_distinct <= counts.winners
    assert 0 <= counts.losers_distinct <= counts.losers
    assert k * counts.problems_paired == counts.pairs_too_long + counts.pairs_identical + counts.pairs


@given(judged_samples(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(
    judged: tuple[list[Sample], dict[int, bool]], shuffler: random.Random
) -> None:
    samples, correct = judged
    shuffled = list(samples)
    shuffler.shuffle(shuffled)
    assert build(samples, correct, gold=GOLD) == build(shuffled, correct, gold=GOLD)


def candidates(*names: str) -> list[Candidate]:
    return [Candidate(sample_index=index, text=name, ids=tuple(name.encode())) for index, name in enumerate(names)]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 30), st.integers(0, 99))
def test_the_walk_goes_round_and_round(n_winners: int, n_losers: int, k: int, seed: int) -> None:
    winners = candidates(*(f"w{i}" for i in range(n_winners)))
    losers = candidates(*(f"l{i}" for i in range(n_losers)))
    pairs = walk(winners, losers, k, seed=seed)
    assert len(pairs) == k
    for position, members, size in ((0, winners, n_winners), (1, losers, n_losers)):
        side = [pair[position].text for pair in pairs]
        # Every member once before any comes again, and then in the same order.
        assert len(set(side[:size])) == min(k, size)
        assert all(side[i] == side[i % size] for i in range(k))
        assert set(side) <= {member.text for member in members}


def test_seeds_shuffle_both_sides() -> None:
    winners, losers = candidates("a", "b", "c", "d"), candidates("e", "f", "g", "h")
    walks = [walk(winners, losers, 4, seed=seed) for seed in range(40)]
    assert len({tuple(pair[0].text for pair in pairs) for pairs in walks}) > 10
    assert len({tuple(pair[1].text for pair in pairs) for pairs in walks}) > 10
    assert walk(winners, losers, 4, seed=3) == walks[3]


def test_a_fair_draw_where_k_is_smaller_than_the_sets() -> None:
    firsts = Counter(walk(candidates(*"abcd"), candidates("z"), 1, seed=seed)[0][0].text for seed in range(400))
    assert set(firsts) == set("abcd")
    assert min(firsts.values()) > 60  # 100 expected; below 60 has a chance of about 1 in 100,000


FIVE = [
    sample(0, "right", (10, 1)),
    sample(1, "wrong", (11, 1)),
    sample(2, "right", (10, 1)),
    sample(3, "rights", (10, 12, 1)),
    sample(4, "wrong", (11, 1)),
]
VERDICTS = {0: True, 1: False, 2: True, 3: True, 4: False}


def test_repeats_keep_their_weight_unless_deduplicated() -> None:
    pairs, counts = build(FIVE, VERDICTS, per_prompt=6)
    assert Counter(pair.chosen_sample for pair in pairs) == {0: 2, 2: 2, 3: 2}
    assert Counter(pair.rejected_sample for pair in pairs) == {1: 3, 4: 3}
    pairs, deduplicated = build(FIVE, VERDICTS, per_prompt=6, deduplicate=True)
    assert Counter(pair.chosen_sample for pair in pairs) == {0: 3, 3: 3}
    assert {pair.rejected_sample for pair in pairs} == {1}
    assert (
        counts
        == deduplicated
        == Counts(
            problems=1,
            problems_paired=1,
            samples=5,
            winners=3,
            winners_distinct=2,
            losers=2,
            losers_distinct=1,
            pairs=6,
        )
    )


def test_a_gold_solution_makes_a_problem_without_winners_usable() -> None:
    wrong = dict.fromkeys(VERDICTS, False)
    assert build(FIVE, wrong)[1].problems_all_wrong == 1
    pairs, counts = build(FIVE, wrong, gold=GOLD, per_prompt=2)
    assert [(pair.chosen_sample, pair.chosen, pair.chosen_ids) for pair in pairs] == [
        (GOLD_SAMPLE, "gold", GOLD.ids)
    ] * 2
    assert (counts.gold_winners, counts.winners, counts.problems_all_wrong) == (1, 0, 0)


def test_a_gold_solution_is_one_winner_among_the_others() -> None:
    pairs, counts = build(FIVE, VERDICTS, gold=GOLD, per_prompt=4)
    assert sorted(pair.chosen_sample for pair in pairs) == [GOLD_SAMPLE, 0, 2, 3]
    assert (counts.gold_winners, counts.winners) == (1, 3)


def test_a_gold_solution_that_was_sampled_too_is_deduplicated() -> None:
    twin = Candidate(sample_index=GOLD_SAMPLE, text="right", ids=(10, 1))
    pairs, _ = build(FIVE, VERDICTS, gold=twin, per_prompt=4, deduplicate=True)
    assert {pair.chosen_sample for pair in pairs} == {0, 3}


def test_a_gold_solution_adds_nothing_where_all_are_right() -> None:
    pairs, counts = build(FIVE, dict.fromkeys(VERDICTS, True), gold=GOLD)
    assert (pairs, counts.problems_all_right, counts.gold_winners) == ([], 1, 0)


def test_a_loser_that_says_what_the_gold_solution_says_is_dropped() -> None:
    twin = Candidate(sample_index=GOLD_SAMPLE, text="wrong", ids=(11, 1))
    pairs, counts = build(FIVE[1:2], VERDICTS, gold=twin, per_prompt=3)
    assert (pairs, counts.pairs_identical) == ([], 3)
    same_text = Candidate(sample_index=GOLD_SAMPLE, text="wrong", ids=(13, 1))
    assert build(FIVE[1:2], VERDICTS, gold=same_text, per_prompt=3)[1].pairs_identical == 3


def test_truncated_and_empty_samples_stand_on_neither_side() -> None:
    rows = [
        sample(0, "right", (10, 1)),
        sample(1, "wrong", (11, 1)),
        sample(2, "right, cut", (10,), truncated=True),
        sample(3, "", (5,), truncated=True),
        sample(4, " \n", (3, 1)),
        sample(5, "", (1,)),
    ]
    pairs, counts = build(rows, {row.sample_index: row.sample_index in (0, 2, 4) for row in rows}, per_prompt=5)
    assert {(pair.chosen_sample, pair.rejected_sample) for pair in pairs} == {(0, 1)}
    assert (counts.samples, counts.samples_truncated, counts.samples_empty) == (6, 2, 2)
    assert (counts.winners, counts.losers, counts.pairs) == (1, 1, 5)


def test_a_problem_with_no_usable_sample() -> None:
    pairs, counts = build([sample(0, "cut", (10,), truncated=True)], {0: False}, gold=GOLD)
    assert (pairs, counts) == ([], Counts(problems=1, problems_unusable=1, samples=1, samples_truncated=1))


@pytest.mark.parametrize(("longest", "kept"), [(6, 4), (5, 2), (4, 0)])
def test_pairs_with_a_sequence_that_is_too_long_are_dropped(longest: int, kept: int) -> None:
    """The prompt has 3 tokens, the losers 2 and the winners 2 and 3."""
    pairs, counts = build([FIVE[0], FIVE[1], FIVE[3]], VERDICTS, per_prompt=4, longest=longest)
    assert len(pairs) == kept
    assert counts.pairs_too_long == 4 - kept
    # A pair keeps the number of its place in the walk, in which the two winners take turns.
    assert len({int(pair.pair_id[-3:]) % 2 for pair in pairs}) == kept // 2


def test_held_out_problems_are_marked() -> None:
    assert all(pair.held_out for pair in build(FIVE, VERDICTS, held_out=True)[0])
    assert not any(pair.held_out for pair in build(FIVE, VERDICTS)[0])


def test_a_limit_draws_pairs_and_keeps_their_order() -> None:
    pairs, _ = build(FIVE, VERDICTS, per_prompt=20)
    drawn = limit_pairs(pairs, 7, seed=1)
    assert len(drawn) == 7
    assert [pair.pair_id for pair in drawn] == sorted(pair.pair_id for pair in drawn)
    assert drawn == limit_pairs(pairs, 7, seed=1) != limit_pairs(pairs, 7, seed=2)
    assert limit_pairs(pairs, 20, seed=1) == limit_pairs(pairs, None, seed=1) == pairs


def test_counts_show_what_is_not_zero() -> None:
    assert str(Counts(problems=3, samples=2) + Counts(samples=4)) == "problems 3, samples 6"
