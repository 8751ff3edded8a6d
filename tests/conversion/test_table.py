"""The table against Megatron's layout as Megatron defines it, written down here once more with reshapes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.conversion.into_megatron import cut
from irpo_megatron.conversion.out_of_megatron import part
from irpo_megatron.conversion.table import Entry, table
from irpo_megatron.conversion.weights import tensor_shapes
from irpo_megatron.engine.architecture import Architecture

ARCHITECTURE = Architecture(
    layers=2,
    hidden_size=6,
    heads=6,
    kv_heads=2,
    head_size=4,  # not hidden_size / heads
    ffn_size=10,
    vocabulary=11,
    context=16,
    rope_base=10000.0,
    norm_epsilon=1e-5,
    tied_embeddings=False,
)


def entry_of(architecture: Architecture, key: str, layer: int | None = 0) -> Entry:
    (found,) = [entry for entry in table(architecture) if (entry.key, entry.layer) == (key, layer)]
    return found


def join(entry: Entry, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The Megatron tensor, by what the table says."""
    whole = torch.zeros(entry.shape, dtype=next(iter(tensors.values())).dtype)
    for rows in entry.rows:
        whole[rows.at : rows.at + rows.count] = tensors[rows.tensor][rows.start : rows.start + rows.count]
    return whole


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_query_heads_stand_with_the_key_and_value_of_their_group(kv_heads: int, kind: str) -> None:
    architecture = dataclasses.replace(ARCHITECTURE, kv_heads=kv_heads, qkv_bias=True)
    entry = entry_of(architecture, f"decoder.layers.self_attention.linear_qkv.{kind}", layer=1)
    width = () if kind == "bias" else (6,)
    tensors = {
        f"model.layers.1.self_attn.{name}_proj.{kind}": torch.randn(heads * 4, *width)
        for name, heads in (("q", 6), ("k", kv_heads), ("v", kv_heads))
    }
    joined = join(entry, tensors)
    by_group = [tensor.view(kv_heads, -1, *width) for tensor in tensors.values()]
    assert torch.equal(joined, torch.cat(by_group, dim=1).reshape(-1, *width))
    for name, tensor in tensors.items():
        assert torch.equal(part(joined, entry, name), tensor)


def test_the_gate_stands_above_its_up_projection() -> None:
    entry = entry_of(ARCHITECTURE, "decoder.layers.mlp.linear_fc1.weight")
    gate, up = torch.randn(10, 6), torch.randn(10, 6)
    tensors = {"model.layers.0.mlp.gate_proj.weight": gate, "model.layers.0.mlp.up_proj.weight": up}
    assert torch.equal(join(entry, tensors), torch.cat([gate, up]))


def test_the_table_names_each_tensor_once() -> None:
    entries = list(table(ARCHITECTURE))
    names = [name for entry in entries for name in entry.tensors]
    assert len(names) == len(set(names)) == 3 + 2 * 9
    assert len({(entry.key, entry.layer) for entry in entries}) == len(entries) == 3 + 2 * 6
    tied = list(table(dataclasses.replace(ARCHITECTURE, tied_embeddings=True)))
    assert "lm_head.weight" not in [name for entry in tied for name in entry.tensors]
    more = list(table(dataclasses.replace(ARCHITECTURE, qkv_bias=True, qk_norm=True)))
    assert len({name for entry in more for name in entry.tensors}) == 3 + 2 * (9 + 3 + 2)


def test_shapes_are_those_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=6,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        vocab_size=11,
    )
    expected = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    assert tensor_shapes(tuple(table(ARCHITECTURE))) == expected


@given(
    tensor_parallel=st.sampled_from([1, 2, 3, 4, 8]),
    kv_heads=st.sampled_from([1, 2, 3]),
    vocabulary=st.integers(2, 40),
    ffn_size=st.integers(1, 24),
)
def test_boxes_cover_every_tensor_once(tensor_parallel: int, kv_heads: int, vocabulary: int, ffn_size: int) -> None:
    architecture = dataclasses.replace(
        ARCHITECTURE, kv_heads=kv_heads, vocabulary=vocabulary, ffn_size=ffn_size, qkv_bias=True, qk_norm=True
    )
    for entry in table(architecture):
        depth = () if entry.layer is None else (architecture.layers,)
        covered = torch.zeros((*depth, *entry.shape))
        for offset, shape in cut(entry, tensor_parallel):
            covered[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))] += 1
        mine = covered if entry.layer is None else covered[entry.layer]
        assert torch.equal(mine, torch.ones(entry.shape))
        assert covered.sum() == mine.sum()
