"""Which samples are of no use: loops and ignored seeds are found, short and certain answers are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.generation.useless import find_useless, is_loop
from irpo_megatron.records import FinishReason, Sample
from irpo_megatron.tasks import load_task


def sample(prompt: int, index: int, ids: list[int], text: str = "", finish_reason: FinishReason = "stop") -> Sample:
    return Sample(
        prompt_id=f"train-{prompt:06d}",
        sample_index=index,
        seed=index,
        prompt="?",
        prompt_ids=(1,),
        completion=text,
        completion_ids=tuple(ids),
        finish_reason=finish_reason,
    )


def kinds(samples: list[Sample], task: str = "gsm8k") -> dict[str, list[tuple[str, int]]]:
    found = find_useless(samples, load_task(task))
    return {kind: [(s.prompt_id[-1], s.sample_index) for s in useless] for kind, useless in found.items()}


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([1, 2, 3, 4] + [9] * 4, True),
        ([1, 2, 3, 4] * 4, False),  # the second half is two rounds: too few to tell
        ([1, 2, 3, 4] * 8, True),
        ([7, 8, 9, 1, 2] + [5, 6] * 20, True),
        (list(range(30)) + [5, 6] * 20 + [5], True),  # cut off in the midst of a round
        (list(range(64)), False),
        ([5, 6] * 20 + [1], False),  # it has found its way out
        ([9, 9], False),
        ([9] * 7, True),
        ([], False),
    ],
)
def test_loops(ids: list[int], loops: bool) -> None:
    assert is_loop(ids) is loops


@given(st.lists(st.integers(0, 2), max_size=40))
def test_loops_are_what_the_definition_says(ids: list[int]) -> None:
    half = ids[len(ids) // 2 :]
    periods = [p for p in range(1, len(half) // 4 + 1) if all(half[i] == half[i - p] for i in range(p, len(half)))]
    assert is_loop(ids) == bool(periods)


def test_a_loop_is_repeated_only_where_it_is_cut_off() -> None:
    found = kinds([sample(1, 0, [9] * 20, finish_reason="length"), sample(1, 1, [9] * 19)])
    assert found["repeated"] == [("1", 0)]
    assert found["truncated"] == [("1", 0)]


def test_equal_samples_of_a_prompt_are_repeated_and_one_other_redeems_them() -> None:
    samples = [sample(1, k, [5, 6]) for k in range(3)] + [sample(2, k, [5, 6 + (k == 1)]) for k in range(3)]
    assert kinds(samples)["repeated"] == [("1", 0), ("1", 1), ("1", 2)]


def test_a_single_sample_is_equal_to_nothing() -> None:
    assert kinds([sample(k, 0, [5]) for k in range(4)])["repeated"] == []


def test_empty_and_unparsable() -> None:
    texts = ["", " \n", "so it is 4", "Final answer: 4"]
    found = kinds([sample(k, 0, [k], text) for k, text in enumerate(texts)])
    assert found["empty"] == [("0", 0), ("1", 0)]
    assert found["unparsable"] == [("0", 0), ("1", 0), ("2", 0)]


def test_the_task_says_what_a_final_answer_is() -> None:
    (boxed,) = [sample(0, 0, [1], r"hence $\boxed{4}$")]
    assert kinds([boxed])["unparsable"] == [("0", 0)]
    assert kinds([boxed], task="math")["unparsable"] == []
