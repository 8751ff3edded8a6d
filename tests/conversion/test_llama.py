"""The table of the Llama family, and the two bits of arithmetic in it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from irpo_megatron.conversion.llama import join_qkv, split_qkv, table
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


def test_query_heads_stand_with_the_key_and_value_of_their_group() -> None:
    query = torch.arange(24 * 6).view(24, 6)
    key = 1000 + torch.arange(8 * 6).view(8, 6)
    value = 2000 + torch.arange(8 * 6).view(8, 6)
    joined = join_qkv([query, key, value], ARCHITECTURE)
    expected = torch.cat([query[:12], key[:4], value[:4], query[12:], key[4:], value[4:]])
    assert torch.equal(joined, expected)
    for part, original in zip(split_qkv(joined, ARCHITECTURE), (query, key, value), strict=True):
        assert torch.equal(part, original)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_splitting_undoes_joining(kv_heads: int) -> None:
    architecture = dataclasses.replace(ARCHITECTURE, kv_heads=kv_heads)
    parts = [torch.randn(heads * 4, 6) for heads in (6, kv_heads, kv_heads)]
    for part, original in zip(split_qkv(join_qkv(parts, architecture), architecture), parts, strict=True):
        assert torch.equal(part, original)


def test_every_entry_splits_what_it_joined() -> None:
    sizes = {"q": 24, "k": 8, "v": 8}
    for entry in table(ARCHITECTURE):
        parts = [
            torch.randn(sizes.get(name.split(".")[-2].removesuffix("_proj"), 10), 6) for name in entry.hugging_face
        ]
        for part, original in zip(entry.split(entry.join(parts)), parts, strict=True):
            assert torch.equal(part, original), entry.megatron


def test_the_table_names_each_tensor_once() -> None:
    entries = list(table(ARCHITECTURE))
    names = [name for entry in entries for name in entry.hugging_face]
    assert len(names) == len(set(names)) == 3 + 2 * 9
    assert len({entry.megatron for entry in entries}) == len(entries) == 3 + 2 * 6
    tied = list(table(dataclasses.replace(ARCHITECTURE, tied_embeddings=True)))
    assert "lm_head.weight" not in [name for entry in tied for name in entry.hugging_face]
