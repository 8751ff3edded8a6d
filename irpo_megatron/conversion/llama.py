"""The Llama family: which Hugging Face tensors make which Megatron tensor. One table, read in both directions.

The only arithmetic is in two places. Megatron keeps query, key and value of a layer in one matrix, ordered by group of
query heads that share a key-value head; and it keeps the gate and up projections of the feed-forward in one matrix.

    Shapes: q query heads, g key-value heads (groups), d head size, h hidden size, f feed-forward size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from irpo_megatron.engine.architecture import Architecture

Tensors = tuple[torch.Tensor, ...]

# Buffers that old checkpoints carry and that are computed from the configuration.
COMPUTED_SUFFIXES = (".rotary_emb.inv_freq",)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One Megatron tensor and the Hugging Face tensors that it is made of."""

    megatron: str
    hugging_face: tuple[str, ...]
    join: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    split: Callable[[torch.Tensor], Tensors]


def table(architecture: Architecture) -> Iterator[Entry]:
    """Every tensor of the model, once, in the order of the model."""
    yield _same("embedding.word_embeddings.weight", "model.embed_tokens.weight")
    for layer in range(architecture.layers):
        ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
        yield _same(f"{ours}.input_layernorm.weight", f"{theirs}.input_layernorm.weight")
        yield Entry(
            megatron=f"{ours}.self_attention.linear_qkv.weight",
            hugging_face=tuple(f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"),
            join=lambda parts: join_qkv(parts, architecture),
            split=lambda joined: split_qkv(joined, architecture),
        )
        yield _same(f"{ours}.self_attention.linear_proj.weight", f"{theirs}.self_attn.o_proj.weight")
        yield _same(f"{ours}.pre_mlp_layernorm.weight", f"{theirs}.post_attention_layernorm.weight")
        yield Entry(
            megatron=f"{ours}.mlp.linear_fc1.weight",
            hugging_face=(f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight"),
            join=lambda parts: torch.cat(list(parts)),
            split=lambda joined: joined.chunk(2),
        )
        yield _same(f"{ours}.mlp.linear_fc2.weight", f"{theirs}.mlp.down_proj.weight")
    yield _same("decoder.final_layernorm.weight", "model.norm.weight")
    if not architecture.tied_embeddings:
        yield _same("output_layer.weight", "lm_head.weight")


def join_qkv(parts: Sequence[torch.Tensor], architecture: Architecture) -> torch.Tensor:
    """[q d, h], [g d, h], [g d, h] -> [(q + 2 g) d, h]: for each group its query heads, its key, its value."""
    query, key, value = parts
    groups, size = architecture.kv_heads, architecture.head_size
    by_group = [part.view(groups, -1, size, part.shape[-1]) for part in (query, key, value)]
    return torch.cat(by_group, dim=1).reshape(-1, query.shape[-1])


def split_qkv(joined: torch.Tensor, architecture: Architecture) -> Tensors:
    """The inverse of `join_qkv`."""
    groups, size = architecture.kv_heads, architecture.head_size
    a_group = architecture.heads // groups
    by_group = joined.view(groups, a_group + 2, size, joined.shape[-1])
    return tuple(part.reshape(-1, joined.shape[-1]) for part in torch.split(by_group, [a_group, 1, 1], dim=1))


def _same(megatron: str, hugging_face: str) -> Entry:
    return Entry(
        megatron=megatron,
        hugging_face=(hugging_face,),
        join=lambda parts: parts[0],
        split=lambda joined: (joined,),
    )
