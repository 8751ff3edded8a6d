"""From a stream to what this rank's part of the model is called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from irpo_megatron.engine.attention import stream_params
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.streams import Piece, Stream, cut, positions


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """This rank's part of a stream of T tokens; t = T / CP."""

    tokens: torch.Tensor
    """[1, t]"""
    positions: torch.Tensor
    """[1, t]"""
    attention: PackedSeqParams
    """Who attends to whom."""
    columns: torch.Tensor
    """[T] where each token of the stream lies in `tokens`; -1 for those of other context-parallel ranks."""


def model_input(stream: Stream, place: Place) -> ModelInput:
    """Fill the stream up to the length that the layout asks for, and take this rank's part of it."""
    stream.fill(place.stream_multiple)
    everything = range(len(stream.tokens))
    # Transformer Engine's context parallelism cuts every sequence; ours cuts the stream, wherever sequences end.
    stretches = [range(piece.start, piece.end) for piece in stream.pieces] if place.transformer_engine else [everything]
    parts = [cut(stretches, context_rank=rank, context_size=place.context_size) for rank in range(place.context_size)]
    mine = [index for part in parts[place.context_rank] for index in part]
    columns = torch.full((len(everything),), -1)
    columns[mine] = torch.arange(len(mine))
    return ModelInput(
        tokens=torch.tensor([[stream.tokens[index] for index in mine]], device=place.device),
        positions=torch.tensor([positions(stream.pieces, parts[place.context_rank])], device=place.device),
        attention=(
            _transformer_engine_params(stream.pieces, place.device)
            if place.transformer_engine
            else stream_params(stream.pieces, parts, rank=place.context_rank, device=place.device)
        ),
        columns=columns,
    )


def _transformer_engine_params(pieces: Sequence[Piece], device: torch.device) -> PackedSeqParams:
    """Sequences end to end; what fills one up is part of it, behind all that counts."""
    assert not any(piece.prefix for piece in pieces), "Transformer Engine's attention cannot share prompts"
    edges = torch.tensor([0, *(piece.end for piece in pieces)], dtype=torch.int32, device=device)
    longest = max(piece.end - piece.start for piece in pieces)
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=edges, cu_seqlens_kv=edges, max_seqlen_q=longest, max_seqlen_kv=longest
    )
