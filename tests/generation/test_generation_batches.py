"""Which samples are decoded together."""

from __future__ import annotations

import pytest

from irpo_megatron.generation.batches import cut_batches
from irpo_megatron.generation.protocol import SampleRequest


def requests(*prompts: tuple[int, int]) -> list[SampleRequest]:
    """(length, samples) -> that many requests for a prompt of that length."""
    return [SampleRequest(prompt_ids=(length,) * length, seed=0) for length, samples in prompts for _ in range(samples)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_every_request_is_in_exactly_one_batch(batch_size: int) -> None:
    asked = requests((5, 4), (2, 3), (9, 1), (2, 2))
    batches = list(cut_batches(asked, batch_size))
    assert sorted(index for batch in batches for group in batch for index in group.members) == list(range(10))
    assert all(sum(len(group.members) for group in batch) <= batch_size for batch in batches)
    assert all(asked[index].prompt_ids == group.prompt_ids for b in batches for group in b for index in group.members)


def test_a_prompt_stays_whole_where_it_fits_a_batch() -> None:
    batches = list(cut_batches(requests((1, 3), (2, 3), (3, 3)), 5))
    assert [[len(group.members) for group in batch] for batch in batches] == [[3], [3], [3]]


def test_a_prompt_larger_than_a_batch_is_split() -> None:
    batches = list(cut_batches(requests((1, 7), (2, 2)), 3))
    assert [[len(group.members) for group in batch] for batch in batches] == [[3], [3], [1, 2]]


def test_prompts_of_similar_length_share_a_batch() -> None:
    batches = list(cut_batches(requests((9, 1), (1, 1), (8, 1), (2, 1)), 2))
    assert [[len(group.prompt_ids) for group in batch] for batch in batches] == [[1, 2], [8, 9]]


def test_no_requests_make_no_batch() -> None:
    assert list(cut_batches([], 4)) == []
