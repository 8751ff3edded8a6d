"""Who attends to whom, and which rank computes what: against one matrix, written down token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_streams import Rows, allowed, rows_of_stream, stream_of

from irpo_megatron.engine.streams import PADDING, Piece, Stream, attention_calls, cut, positions

context_sizes = st.integers(1, 4)


def test_pieces_of_a_shared_prompt() -> None:
    stream = Stream()
    assert stream.append([5, 6, 7, 8]) == 0  # a prompt of three tokens, and one token more
    assert stream.append([9], prefix=range(0, 3)) == 4
    assert stream.append([], prefix=range(0, 3)) == 5
    assert stream.append([1, 2]) == 5
    assert stream.tokens == [5, 6, 7, 8, 9, 1, 2]
    assert stream.pieces == [
        Piece(start=0, end=4, position=0, prefix=range(0)),
        Piece(start=4, end=5, position=3, prefix=range(0, 3)),
        Piece(start=5, end=5, position=3, prefix=range(0, 3)),
        Piece(start=5, end=7, position=0, prefix=range(0)),
    ]


def test_filling_lengthens_the_last_piece() -> None:
    stream = Stream()
    stream.append([5, 6, 7])
    stream.fill(3)
    assert stream.tokens == [5, 6, 7], "already a multiple"
    stream.fill(4)
    stream.append([8], prefix=range(0, 2))
    stream.fill_to(8)
    assert stream.tokens == [5, 6, 7, PADDING, 8, PADDING, PADDING, PADDING]
    assert [(piece.start, piece.end) for piece in stream.pieces] == [(0, 4), (4, 8)]
    assert positions(stream.pieces, [range(8)]) == [0, 1, 2, 3, 2, 3, 4, 5]


def test_filling_never_changes_what_a_token_attends_to() -> None:
    rows: Rows = [(3, [2, 0, 1]), (1, [4])]
    bare, filled = stream_of(rows), stream_of(rows, multiple=16)
    tokens = len(bare.tokens)
    assert len(filled.tokens) == 16 > tokens
    assert torch.equal(allowed(filled.pieces)[:tokens, :tokens], allowed(bare.pieces))
    assert not allowed(filled.pieces)[:tokens, tokens:].any()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), context_sizes)
def test_each_token_is_computed_by_one_rank_and_every_rank_has_as_much_to_do(sizes: list[int], context: int) -> None:
    """The work on a stretch is the number of keys that its tokens see."""
    stretches, start = [], 0
    for size in sizes:
        stretches.append(range(start, start + size * 2 * context))
        start = stretches[-1].stop
    cost = {index: index - stretch.start + 1 for stretch in stretches for index in stretch}
    by_rank = [
        [index for part in cut(stretches, context_rank=rank, context_size=context) for index in part]
        for rank in range(context)
    ]
    assert sorted(index for mine in by_rank for index in mine) == list(range(start))
    assert all(mine == sorted(mine) for mine in by_rank)
    assert len({len(mine) for mine in by_rank}) == len({sum(cost[index] for index in mine) for mine in by_rank}) == 1


def test_a_stretch_that_cannot_be_cut_evenly_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="filled up to a multiple of 2 x CP"):
        cut([range(6)], context_rank=0, context_size=2)


def _attended(pieces: list[Piece], parts: list[list[range]]) -> torch.Tensor:
    """The matrix that the calls of all ranks make, each token a query exactly once."""
    tokens = pieces[-1].end
    matrix = torch.zeros(tokens, tokens, dtype=torch.bool)
    queried = torch.zeros(tokens, dtype=torch.long)
    for mine in parts:
        calls = attention_calls(pieces, mine)
        in_order = [index for call in calls for index in call.queries]
        assert in_order == [index for part in mine for index in part], "a rank's calls follow the order of its tokens"
        for call in calls:
            keys = [index for stretch in call.keys for index in stretch]
            assert len(keys) == len(set(keys))
            for number, query in enumerate(call.queries):
                fewer = len(call.queries) - 1 - number  # the last query sees all keys, each one before it one fewer
                matrix[query, keys[: len(keys) - fewer]] = True
                queried[query] += 1
    assert queried.tolist() == [1] * tokens
    return matrix


@settings(max_examples=60, deadline=None)
@given(rows_of_stream, context_sizes)
def test_a_stream_cut_as_a_whole_attends_as_defined(rows: Rows, context: int) -> None:
    stream = stream_of(rows, multiple=2 * context)
    everything = [range(len(stream.tokens))]
    parts = [cut(everything, context_rank=rank, context_size=context) for rank in range(context)]
    assert torch.equal(_attended(stream.pieces, parts), allowed(stream.pieces))


@settings(max_examples=60, deadline=None)
@given(rows_of_stream, context_sizes)
def test_a_stream_cut_by_sequence_attends_as_defined(rows: Rows, context: int) -> None:
    stream = stream_of(rows, multiple_of_each=2 * context)
    stretches = [range(piece.start, piece.end) for piece in stream.pieces]
    parts = [cut(stretches, context_rank=rank, context_size=context) for rank in range(context)]
    assert torch.equal(_attended(stream.pieces, parts), allowed(stream.pieces))


@settings(max_examples=60, deadline=None)
@given(rows_of_stream, context_sizes)
def test_a_position_is_the_number_of_tokens_that_come_before(rows: Rows, context: int) -> None:
    stream = stream_of(rows, multiple=2 * context)
    before = (allowed(stream.pieces).sum(dim=1) - 1).tolist()
    for rank in range(context):
        parts = cut([range(len(stream.tokens))], context_rank=rank, context_size=context)
        assert positions(stream.pieces, parts) == [before[index] for part in parts for index in part]
