"""Core attention over a stream on torch's SDPA: packed sequences, shared prompts and context parallelism alike.

What attends to what comes with the micro-batch (`StreamParams`), so that one module serves every layout. Under context
parallelism a rank holds the queries of its own part of the stream and gathers the keys and values of all parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.bias import causal_lower_right

from irpo_megatron.engine.rope_config import RopeScaling
from irpo_megatron.engine.rotary import rotary_table, rotate
from irpo_megatron.engine.streams import Attend, Piece, attention_calls, positions


@dataclass(frozen=True)
class Call:
    """One SDPA call: the next `queries` of the rank's tokens over some blocks of the keys."""

    queries: int
    blocks: tuple[int, ...]
    mask: Any
    """None where queries and keys are the same tokens: plain causal attention."""


@dataclass
class StreamParams(PackedSeqParams):  # type: ignore[misc]
    """What core attention knows of a micro-batch; Transformer Engine reads the fields that it inherits.

    Attributes:
        positions: [t] position id of each of this rank's tokens.
        calls: In the order of the rank's tokens, each of which is a query exactly once.
        key_blocks: Lengths of the blocks that the stream's keys are cut into.
        gather_order: [stream] where each token of the stream lies once the ranks' parts are gathered; None without CP.
    """

    positions: torch.Tensor | None = None
    calls: tuple[Call, ...] = ()
    key_blocks: tuple[int, ...] = ()
    gather_order: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self._tables: dict[tuple[int, float, RopeScaling | None], tuple[torch.Tensor, torch.Tensor]] = {}

    def rotary_table(
        self, *, size: int, base: float, scaling: RopeScaling | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for the rank's tokens, computed once for all layers."""
        assert self.positions is not None
        key = (size, base, scaling)
        if key not in self._tables:
            self._tables[key] = rotary_table(self.positions, size=size, base=base, scaling=scaling)
        return self._tables[key]


def stream_params(
    pieces: Sequence[Piece], parts: Sequence[Sequence[range]], *, rank: int, device: torch.device
) -> StreamParams:
    """The parameters of one context-parallel rank.

    Args:
        parts: What each rank of the context-parallel group computes of the stream.
        rank: Which of them this one is.
    """
    attends = attention_calls(pieces, parts[rank])
    edges = sorted({edge for attend in attends for keys in attend.keys for edge in (keys.start, keys.stop)})
    edges = sorted({0, *edges, pieces[-1].end})
    blocks = {start: number for number, start in enumerate(edges)}
    gathered = [index for part in parts for stretch in part for index in stretch]
    order = torch.empty(len(gathered), dtype=torch.long)
    order[torch.tensor(gathered)] = torch.arange(len(gathered))
    return StreamParams(
        qkv_format="thd",
        positions=torch.tensor(positions(pieces, parts[rank]), device=device),
        calls=tuple(_call(attend, blocks, device) for attend in attends),
        key_blocks=tuple(end - start for start, end in itertools.pairwise(edges)),
        gather_order=order.to(device) if len(parts) > 1 else None,
    )


def _call(attend: Attend, blocks: dict[int, int], device: torch.device) -> Call:
    queries, keys = len(attend.queries), sum(map(len, attend.keys))
    numbers = [number for stretch in attend.keys for number in range(blocks[stretch.start], blocks[stretch.stop])]
    return Call(queries, tuple(numbers), None if queries == keys else _lower_right_mask(queries, keys, device))


def _lower_right_mask(queries: int, keys: int, device: torch.device) -> Any:
    """The last query sees all keys, each one before it one fewer. On CUDA it need not exist as a tensor."""
    if device.type == "cuda":
        return causal_lower_right(queries, keys)
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


class StreamAttention(torch.nn.Module):
    """Rotary embedding and causal attention of one layer on this rank's heads."""

    def __init__(
        self,
        *,
        rope_base: float,
        rope_scaling: RopeScaling | None = None,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        pg_collection: Any,
        **_: Any,
    ) -> None:
        """The other arguments that Megatron-Core hands to a core attention (its type, scale, ...) are unused."""
        super().__init__()
        assert attn_mask_type == AttnMaskType.causal, f"core attention is causal, asked for {attn_mask_type}"
        self.rope_base = rope_base
        self.rope_scaling = rope_scaling
        self.context_group: dist.ProcessGroup = pg_collection.cp

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        packed_seq_params: StreamParams,
        **_: Any,
    ) -> torch.Tensor:
        """Attention output of this rank's tokens.

        Args:
            query: [t, heads / TP, head size], not yet rotated.
            key: [t, key-value heads / TP, head size], not yet rotated.
            value: As `key`.
            attention_mask: Always None: who attends to whom is in `packed_seq_params`.

        Returns:
            [t, heads / TP x head size].
        """
        assert attention_mask is None, "who attends to whom is in packed_seq_params"
        table = packed_seq_params.rotary_table(size=query.shape[-1], base=self.rope_base, scaling=self.rope_scaling)
        query, key = rotate(query, table), rotate(key, table)
        if packed_seq_params.gather_order is not None:
            key, value = self._gather(key, value, packed_seq_params.gather_order)
        grouped = query.shape[1] != key.shape[1]
        queries = torch.split(query, [call.queries for call in packed_seq_params.calls])
        # Splitting has a cheap gradient: slicing keys and values once a call would sum as many tensors of full size.
        keys, values = (torch.split(tensor, list(packed_seq_params.key_blocks)) for tensor in (key, value))
        mixed = [
            torch.nn.functional.scaled_dot_product_attention(
                _heads_first(part),
                _heads_first(_join([keys[number] for number in call.blocks])),
                _heads_first(_join([values[number] for number in call.blocks])),
                attn_mask=call.mask,
                is_causal=call.mask is None,
                enable_gqa=grouped,
            )
            for part, call in zip(queries, packed_seq_params.calls, strict=True)
        ]
        return _join([part[0].transpose(0, 1) for part in mixed]).flatten(1)

    def _gather(self, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the whole stream, in its order; their gradients are summed back over the ranks."""
        both = torch.stack((key, value), dim=1)
        gathered = gather_from_sequence_parallel_region(both, group=self.context_group)
        key, value = gathered.index_select(0, order).unbind(1)
        return key, value


def _heads_first(tokens: torch.Tensor) -> torch.Tensor:
    """[t, heads, size] -> [1, heads, t, size]."""
    return tokens.transpose(0, 1)[None]


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
