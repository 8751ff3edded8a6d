"""A rank's part of a stream: tokens, positions, and where each token of the stream lies in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import place
from support.random_streams import Rows, allowed, rows_of_stream, stream_of

from irpo_megatron.config import Fp8Config, PrecisionConfig
from irpo_megatron.engine.attention import StreamParams
from irpo_megatron.engine.inputs import ModelInput, model_input
from irpo_megatron.engine.streams import PADDING, Stream

BF16_AND_FP8 = PrecisionConfig(dtype="bf16", fp8=Fp8Config(recipe="tensorwise"))


def _parts(rows: Rows, context: int, **changes: Any) -> tuple[Stream, list[ModelInput]]:
    """The filled stream, and the part of every context-parallel rank."""
    stream = stream_of(rows)
    inputs = []
    for rank in range(context):
        stream = stream_of(rows)  # filling changes it
        inputs.append(model_input(stream, place(context=context, context_rank=rank, **changes)))
    return stream, inputs


@settings(max_examples=60, deadline=None)
@given(rows_of_stream, st.integers(1, 4))
def test_columns_say_where_each_token_of_the_stream_lies(rows: Rows, context: int) -> None:
    stream, inputs = _parts(rows, context)
    visible = allowed(stream.pieces).sum(dim=1)
    for part in inputs:
        mine = (part.columns >= 0).nonzero().flatten()
        assert part.tokens.shape == part.positions.shape == (1, len(stream.tokens) // context)
        assert part.columns[mine].tolist() == list(range(len(mine))), "in the order of the stream"
        assert part.tokens[0].tolist() == [stream.tokens[index] for index in mine.tolist()]
        assert part.positions[0].tolist() == (visible[mine] - 1).tolist()
        assert isinstance(part.attention, StreamParams)
        assert part.attention.positions is not None
        assert torch.equal(part.attention.positions, part.positions[0])
    held = torch.stack([part.columns >= 0 for part in inputs]).sum(dim=0)
    assert held.tolist() == [1] * len(stream.tokens), "every token is on exactly one rank"


@pytest.mark.parametrize(
    ("layout", "multiple"),
    [
        ({}, 1),
        ({"data": 3, "pipeline": 2, "tensor": 2}, 1),
        ({"context": 2}, 4),
        ({"context": 3}, 6),
        ({"tensor": 2, "sequence": True}, 2),
        ({"tensor": 4, "sequence": True, "context": 3}, 24),
        ({"precision": BF16_AND_FP8}, 32),
        ({"precision": BF16_AND_FP8, "tensor": 2, "sequence": True, "context": 2}, 256),
    ],
)
def test_a_stream_is_filled_up_to_what_the_layout_can_cut(layout: dict[str, Any], multiple: int) -> None:
    stream = Stream()
    stream.append(range(1, multiple + 2))
    found = model_input(stream, place(**layout))
    assert len(stream.tokens) == (2 * multiple if multiple > 1 else 2)
    assert stream.tokens[multiple + 1 :] == [PADDING] * (len(stream.tokens) - multiple - 1)
    per_rank = found.tokens.shape[1]
    assert per_rank == len(stream.tokens) // layout.get("context", 1)
    assert per_rank % (layout.get("tensor", 1) if layout.get("sequence") else 1) == 0
    assert per_rank % (32 if "precision" in layout else 1) == 0


def test_transformer_engine_gets_the_edges_of_the_sequences() -> None:
    stream = Stream()
    for size in (3, 1, 5):
        stream.append(range(1, size + 1))
    found = model_input(stream, place(transformer_engine=True))
    assert found.attention.qkv_format == "thd"
    for edges in (found.attention.cu_seqlens_q, found.attention.cu_seqlens_kv):
        assert edges.dtype == torch.int32
        assert edges.tolist() == [0, 3, 4, 9]
    assert found.attention.max_seqlen_q == found.attention.max_seqlen_kv == 5
    assert found.tokens.tolist() == [[1, 2, 3, 1, 1, 2, 3, 4, 5]]
    assert found.positions.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4]]
    assert found.columns.tolist() == list(range(9))


def test_transformer_engine_cuts_every_sequence_over_the_context_parallel_ranks() -> None:
    """Rank r has chunks r and 2 CP - 1 - r of each; the edges are those of the whole sequences."""
    inputs = []
    for rank in range(2):
        stream = Stream()
        for size in (8, 3):
            stream.append(range(10 * size, 10 * size + size))
            stream.fill(4)
        inputs.append(model_input(stream, place(transformer_engine=True, context=2, context_rank=rank)))
    assert inputs[0].tokens.tolist() == [[80, 81, 86, 87, 30, PADDING]]
    assert inputs[0].positions.tolist() == [[0, 1, 6, 7, 0, 3]]
    assert inputs[1].tokens.tolist() == [[82, 83, 84, 85, 31, 32]]
    assert inputs[1].positions.tolist() == [[2, 3, 4, 5, 1, 2]]
    assert inputs[0].columns.tolist() == [0, 1, -1, -1, -1, -1, 2, 3, 4, -1, -1, 5]
    assert inputs[1].columns.tolist() == [-1, -1, 0, 1, 2, 3, -1, -1, -1, 4, 5, -1]
    assert [part.attention.cu_seqlens_q.tolist() for part in inputs] == [[0, 8, 12]] * 2
    assert inputs[0].attention.max_seqlen_q == 8


def test_what_fills_a_stream_for_transformer_engine_lengthens_its_last_sequence() -> None:
    stream = Stream()
    for size in (6, 4):
        stream.append(range(1, size + 1))
    found = model_input(stream, place(transformer_engine=True, precision=BF16_AND_FP8))
    assert found.tokens.shape == (1, 32)
    assert found.attention.cu_seqlens_q.tolist() == [0, 6, 32]
    assert found.attention.max_seqlen_q == 26


def test_transformer_engine_is_never_handed_a_shared_prompt() -> None:
    stream = stream_of([(3, [2, 2])])
    with pytest.raises(AssertionError, match="cannot share prompts"):
        model_input(stream, place(transformer_engine=True))
