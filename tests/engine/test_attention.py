"""Core attention over a stream, forward and gradients, against a masked softmax in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from support.places import ALONE
from support.random_streams import Rows, allowed, random_rows, stream_of
from support.ranks import on_ranks

from irpo_megatron.engine.attention import StreamAttention, stream_params
from irpo_megatron.engine.streams import Stream, cut, positions

BASE = 10000.0
SIZE = 8
CPU = torch.device("cpu")
# A prompt with a completion; one with three, of which the second adds no token; a sequence of one token.
ROWS: Rows = [(4, [3]), (2, [5, 0, 7]), (1, [0]), (5, [1, 6])]
Tensors = tuple[torch.Tensor, ...]


def _tensors(stream: Stream, *, heads: int, groups: int, dtype: torch.dtype = torch.float32) -> Tensors:
    """Query [T, heads, SIZE], key and value [T, groups, SIZE], gradient of the output [T, heads x SIZE]."""
    generator = torch.Generator().manual_seed(len(stream.tokens))
    shapes = [(heads, SIZE), (groups, SIZE), (groups, SIZE), (heads * SIZE,)]
    return tuple(torch.randn(len(stream.tokens), *shape, generator=generator).to(dtype) for shape in shapes)


def _rotated(heads: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Halves of a head as complex numbers, turned by position x base^(-2k / size)."""
    half = SIZE // 2
    angles = at[:, None] * BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(heads[..., :half], heads[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def _expected(
    stream: Stream, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor
) -> Tensors:
    """Output [T, heads x SIZE] and the gradients in query, key and value, in float64 from one [T, T] mask."""
    leaves = [tensor.double().requires_grad_() for tensor in (query, key, value)]
    at = torch.tensor(positions(stream.pieces, [range(len(stream.tokens))]), dtype=torch.float64)
    turned_query, turned_key = (_rotated(tensor, at) for tensor in leaves[:2])
    repeats = query.shape[1] // key.shape[1]
    turned_key, wide_value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (turned_key, leaves[2]))
    scores = torch.einsum("qhd,khd->hqk", turned_query, turned_key) / SIZE**0.5
    weights = scores.masked_fill(~allowed(stream.pieces), -torch.inf).softmax(dim=-1)
    output = torch.einsum("hqk,khd->qhd", weights, wide_value).flatten(1)
    output.backward(gradient.double())
    return output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)


def _attention(group: torch.distributed.ProcessGroup) -> StreamAttention:
    return StreamAttention(
        rope_base=BASE,
        config=SimpleNamespace(),  # type: ignore[arg-type]
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        pg_collection=SimpleNamespace(cp=group),
        attention_type="self",
    )


def _computed(stream: Stream, tensors: Tensors, group: torch.distributed.ProcessGroup) -> tuple[list[int], Tensors]:
    """Which tokens this rank computes, and its part of what `_expected` gives."""
    everything = [range(len(stream.tokens))]
    parts = [cut(everything, context_rank=rank, context_size=group.size()) for rank in range(group.size())]
    mine = [index for part in parts[group.rank()] for index in part]
    *leaves, gradient = (tensor[mine].clone() for tensor in tensors)
    for leaf in leaves:
        leaf.requires_grad_()
    params = stream_params(stream.pieces, parts, rank=group.rank(), device=CPU)
    query, key, value = leaves
    output = _attention(group)(query, key, value, None, packed_seq_params=params, attn_mask_type=None)
    output.backward(gradient)
    return mine, (output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None))


@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (3, 1)], ids=["all heads", "GQA", "MQA"])
def test_packed_sequences_and_shared_prompts(heads: int, groups: int) -> None:
    stream = stream_of(ROWS)
    assert any(piece.start == piece.end for piece in stream.pieces)
    tensors = _tensors(stream, heads=heads, groups=groups)
    _, computed = _computed(stream, tensors, ALONE)
    for ours, theirs in zip(computed, _expected(stream, *tensors), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=1e-5)


def test_a_table_is_made_once_for_all_layers() -> None:
    stream = stream_of(ROWS)
    params = stream_params(stream.pieces, [[range(len(stream.tokens))]], rank=0, device=CPU)
    assert params.rotary_table(size=SIZE, base=BASE) is params.rotary_table(size=SIZE, base=BASE)
    assert params.rotary_table(size=SIZE, base=BASE) is not params.rotary_table(size=SIZE, base=2 * BASE)


@pytest.mark.parametrize("seed", range(8))
def test_random_streams(seed: int) -> None:
    stream = stream_of(random_rows(seed, rows=5))
    tensors = _tensors(stream, heads=4, groups=2)
    _, computed = _computed(stream, tensors, ALONE)
    for ours, theirs in zip(computed, _expected(stream, *tensors), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=1e-5)


def test_in_bf16() -> None:
    stream = stream_of(ROWS)
    tensors = _tensors(stream, heads=4, groups=2, dtype=torch.bfloat16)
    _, computed = _computed(stream, tensors, ALONE)
    for ours, theirs in zip(computed, _expected(stream, *tensors), strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 0.01  # bf16 rounds to one part in 256; what is rounded on the way is rounded a few times


def _on_one_rank(rows: list[Rows]) -> list[tuple[list[int], Tensors]]:
    from irpo_megatron.engine.cpu import answer_for_cuda

    answer_for_cuda()  # Megatron-Core's gather asks CUDA for the device
    world = torch.distributed.group.WORLD
    assert world is not None
    streams = [stream_of(some, multiple=2 * world.size()) for some in rows]
    return [_computed(stream, _tensors(stream, heads=4, groups=2), world) for stream in streams]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Megatron-Core's gather would want CUDA tensors and NCCL")
@pytest.mark.parametrize("ranks", [2, 3])
def test_under_context_parallelism_the_ranks_together_are_one_process(ranks: int) -> None:
    """Outputs and gradients of every rank's own tokens; a key's gradient comes from queries on all ranks."""
    streams = [ROWS, *(random_rows(seed, rows=4) for seed in range(4))]
    by_rank = on_ranks(ranks, _on_one_rank, streams)
    for rows, *of_ranks in zip(streams, *by_rank, strict=True):
        stream = stream_of(rows, multiple=2 * ranks)
        tensors = _tensors(stream, heads=4, groups=2)
        expected = _expected(stream, *tensors)
        assert sorted(index for mine, _ in of_ranks for index in mine) == list(range(len(stream.tokens)))
        for mine, computed in of_ranks:
            for ours, theirs in zip(computed, expected, strict=True):
                torch.testing.assert_close(ours.double(), theirs[mine], atol=2e-6, rtol=1e-5)


def test_a_mask_beside_the_stream_is_a_defect() -> None:
    stream = stream_of(ROWS)
    query, key, value, _ = _tensors(stream, heads=2, groups=2)
    params = stream_params(stream.pieces, [[range(len(stream.tokens))]], rank=0, device=CPU)
    with pytest.raises(AssertionError, match="who attends to whom is in packed_seq_params"):
        _attention(ALONE)(query, key, value, torch.ones(1), packed_seq_params=params)
