"""Which Hugging Face rows make which Megatron tensor: one table for every family, read in both directions.

Megatron's tensors are Hugging Face's, put on top of each other row by row. Two are made of more than one: query, key
and value of a layer stand in one matrix, ordered by group of query heads that share a key-value head; the
feed-forward's gate stands above its up projection. Saying which rows stand where is all the arithmetic there is;
whatever part of a tensor a rank holds, under tensor parallelism or after padding, follows from it.

    Shapes: q query heads, g key-value heads (groups), d head size, h hidden size, f feed-forward size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from irpo_megatron.engine.architecture import Architecture

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Consecutive rows of one Hugging Face tensor, and where they stand in the Megatron tensor."""

    tensor: str
    start: int
    count: int
    at: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One Megatron tensor of one layer.

    Attributes:
        key: Its name in a distributed checkpoint, where the layers' tensors of one name are stacked.
        layer: Its place in that stack; None for what there is once.
        columns: Length of a row; None for vectors.
        rows: From top to bottom, without a gap.
        cut: Along which axis tensor parallelism cuts it; None where every rank holds it whole.
        halves: How many matrices stand on top of each other, each cut by itself.
    """

    key: str
    layer: int | None = None
    columns: int | None = None
    rows: tuple[Rows, ...]
    cut: int | None = None
    halves: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor: [rows] or [rows, columns]."""
        last = self.rows[-1]
        return (last.at + last.count, *([] if self.columns is None else [self.columns]))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The Hugging Face tensors that it is made of, in order."""
        return tuple(dict.fromkeys(rows.tensor for rows in self.rows))


def table(architecture: Architecture) -> Iterator[Entry]:
    """Every tensor of the model, once, in the order of the model."""
    hidden, vocabulary = architecture.hidden_size, architecture.vocabulary
    yield _same("embedding.word_embeddings.weight", EMBEDDING, vocabulary, hidden, cut=0)
    for layer in range(architecture.layers):
        yield from _layer(architecture, layer)
    yield _same("decoder.final_layernorm.weight", "model.norm.weight", hidden)
    if not architecture.tied_embeddings:
        yield _same("output_layer.weight", OUTPUT, vocabulary, hidden, cut=0)


def _layer(architecture: Architecture, layer: int) -> Iterator[Entry]:
    hidden, size, ffn = architecture.hidden_size, architecture.head_size, architecture.ffn_size
    attention, theirs = "decoder.layers.self_attention", f"model.layers.{layer}"
    qkv = f"{attention}.linear_qkv"
    # Megatron's checkpoints name the two norms after the matrices behind them, as Transformer Engine fuses them.
    yield _same(f"{qkv}.layer_norm_weight", f"{theirs}.input_layernorm.weight", hidden, layer=layer)
    yield Entry(key=f"{qkv}.weight", layer=layer, columns=hidden, rows=_by_group(architecture, theirs, "weight"), cut=0)
    if architecture.qkv_bias:
        yield Entry(key=f"{qkv}.bias", layer=layer, rows=_by_group(architecture, theirs, "bias"), cut=0)
    if architecture.qk_norm:
        for part in "qk":
            norm = f"{theirs}.self_attn.{part}_norm.weight"
            yield _same(f"{attention}.{part}_layernorm.weight", norm, size, layer=layer)
    output = f"{theirs}.self_attn.o_proj.weight"
    yield _same(f"{attention}.linear_proj.weight", output, hidden, architecture.heads * size, layer=layer, cut=1)
    mlp = "decoder.layers.mlp"
    norm = f"{theirs}.post_attention_layernorm.weight"
    yield _same(f"{mlp}.linear_fc1.layer_norm_weight", norm, hidden, layer=layer)
    gate, up = (f"{theirs}.mlp.{part}_proj.weight" for part in ("gate", "up"))
    yield Entry(
        key=f"{mlp}.linear_fc1.weight",
        layer=layer,
        columns=hidden,
        rows=(Rows(tensor=gate, start=0, count=ffn, at=0), Rows(tensor=up, start=0, count=ffn, at=ffn)),
        cut=0,
        halves=2,
    )
    yield _same(f"{mlp}.linear_fc2.weight", f"{theirs}.mlp.down_proj.weight", hidden, ffn, layer=layer, cut=1)


def _by_group(architecture: Architecture, layer: str, kind: str) -> tuple[Rows, ...]:
    """[q d], [g d], [g d] -> [(q + 2 g) d] rows: for each group its query heads, its key, its value."""
    size = architecture.head_size
    a_group = architecture.heads // architecture.kv_heads * size
    rows: list[Rows] = []
    at = 0
    for group in range(architecture.kv_heads):
        for part, count in (("q", a_group), ("k", size), ("v", size)):
            tensor = f"{layer}.self_attn.{part}_proj.{kind}"
            rows.append(Rows(tensor=tensor, start=group * count, count=count, at=at))
            at += count
    return tuple(rows)


def _same(
    key: str, tensor: str, count: int, columns: int | None = None, *, layer: int | None = None, cut: int | None = None
) -> Entry:
    rows = (Rows(tensor=tensor, start=0, count=count, at=0),)
    return Entry(key=key, layer=layer, columns=columns, rows=rows, cut=cut)
