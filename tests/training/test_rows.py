"""Which rows the reference scores, and what they are called."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from support.pairs import hurtful_pairs

from irpo_megatron.training.rows import row_id, unique_rows

ids = st.lists(st.integers(0, 2**31 - 1), max_size=8)


def _digest(prompt: Sequence[int], completion: Sequence[int]) -> str:
    """Length of the prompt in 8 bytes, every token in 4, little-endian; the first 16 bytes of the sha256."""
    tokens = [*prompt, *completion]
    return hashlib.sha256(struct.pack(f"<q{len(tokens)}i", len(prompt), *tokens)).hexdigest()[:32]


@given(ids, ids)
def test_an_id_is_a_digest_of_the_tokens_and_of_where_the_completion_begins(prompt: list[int], tail: list[int]) -> None:
    """Stored rows are found by it: it must never change."""
    assert row_id(prompt, tail) == _digest(prompt, tail)


def test_an_id_tells_where_the_completion_begins() -> None:
    splits = {row_id([1, 2, 3][:size], [1, 2, 3][size:]) for size in range(4)}
    assert len(splits) == 4


def test_every_completion_is_scored_once() -> None:
    pairs = hurtful_pairs(30, vocabulary=5)
    pairs += pairs[:7]  # the same pairs again, as other losers of a problem bring the same winner again
    rows = unique_rows(pairs)
    expected = {(pair.prompt_ids, completion) for pair in pairs for completion in (pair.chosen_ids, pair.rejected_ids)}
    assert len(rows) == len(expected)
    assert {(row.prompt_ids, row.completion_ids) for row in rows} == expected
    for row in rows:
        assert row.row_id == row_id(row.prompt_ids, row.completion_ids)
        assert row.length == len(row.prompt_ids) + len(row.completion_ids)


def test_the_completions_of_a_prompt_stand_together_and_the_order_of_pairs_does_not_matter() -> None:
    pairs = hurtful_pairs(40, vocabulary=2)
    rows = unique_rows(pairs)
    prompts = [row.prompt_ids for row in rows]
    changes = sum(before != after for before, after in itertools.pairwise(prompts))
    assert changes == len(set(prompts)) - 1 < len(rows) - 1
    assert [len(prompt) for prompt in prompts] == sorted(len(prompt) for prompt in prompts)
    assert unique_rows(pairs[::-1]) == rows
