"""The compiled kernels, against the same sums in float64, written down plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from irpo_megatron.generation.decoding.cpu_step import CpuStep
from irpo_megatron.generation.decoding.layers import Rotation
from irpo_megatron.generation.decoding.pages import PAGE, Pages, PageShape, pages_for
from irpo_megatron.generation.decoding.rows import NewRow, Rows, begin_rows

KV_HEADS = 2
SCALING = 0.3
# Tokens of a row's prompt that lie in pages, and its own so far: page ends, their neighbours, none.
LENGTHS = ((0, 0), (1, 3), (PAGE - 1, PAGE - 1), (PAGE, PAGE), (PAGE + 2, 2 * PAGE + 5), (5, PAGE + 1))
CASES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"]
)


@CASES
@pytest.mark.parametrize(("group", "size"), [(1, 8), (3, 6), (4, 48), (2, 128)])
def test_attention_over_pages(dtype: torch.dtype, tolerance: float, group: int, size: int) -> None:
    own, shared, rows = make_rows(size, dtype)
    draw = torch.Generator().manual_seed(1)
    heads = torch.randn(len(rows), (group + 2) * KV_HEADS, size, generator=draw).to(dtype)
    angles = torch.rand(len(rows), size // 2, generator=draw).repeat(1, 2) * 3
    rotation = Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
    seen = CpuStep(own, shared, rows).attend(1, heads, rotation, SCALING)
    for row in range(len(rows)):
        cos, sin = rotation.cos[row].double(), rotation.sin[row].double()
        queries, keys, value = heads[row].double().split([group * KV_HEADS, KV_HEADS, KV_HEADS])  # type: ignore[no-untyped-call]
        key = rotate(keys, cos, sin)
        known = [
            in_order(shared, rows.prompt_pages, rows.prompt_tokens, row),
            in_order(own, rows.pages, rows.counts, row),
        ]
        all_keys = torch.cat([part[0] for part in known] + [key[:, None]], dim=1)
        all_values = torch.cat([part[1] for part in known] + [value[:, None]], dim=1)
        for head in range(group * KV_HEADS):
            kv_head = head // group
            scores = all_keys[kv_head] @ (rotate(queries[head], cos, sin) * SCALING)
            expected = scores.softmax(dim=0) @ all_values[kv_head]
            assert (seen[row, head].double() - expected).abs().max() < tolerance * all_values.abs().max()
        place = int(rows.counts[row])
        stored = own.tokens[1, :, rows.pages[row, place // PAGE], :, place % PAGE].double()
        assert (stored[0] - key).abs().max() < tolerance * key.abs().max()
        assert torch.equal(stored[1], value)


@CASES
def test_a_number_that_is_not_finite_is_not_hidden(dtype: torch.dtype, tolerance: float) -> None:
    own, shared, rows = make_rows(8, dtype)
    heads = torch.ones(len(rows), 3 * KV_HEADS, 8, dtype=dtype)
    heads[:, 0, 3] = torch.nan
    rotation = Rotation(torch.ones(len(rows), 8, dtype=dtype), torch.zeros(len(rows), 8, dtype=dtype))
    step = CpuStep(own, shared, rows)
    assert step.attend(0, heads, rotation, SCALING)[:, 0].isnan().all()
    hidden = torch.tensor([[1.0, torch.nan, 2.0]], dtype=dtype)
    assert step.add_and_norm(hidden, torch.zeros_like(hidden), Norm(torch.ones(3, dtype=dtype))).isnan().all()
    assert step.gate(torch.tensor([[torch.nan, 1.0, 1.0, torch.nan]], dtype=dtype)).isnan().all()


@CASES
def test_add_and_norm(dtype: torch.dtype, tolerance: float) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, change = (torch.randn(5, 37, generator=draw).to(dtype) for _ in range(2))
    module = Norm(torch.rand(37, generator=draw).to(dtype) + 0.5)
    total = (hidden.double() + change.double()).to(dtype).double()
    normed = CpuStep(*make_rows(8, dtype)).add_and_norm(hidden, change, module)
    assert torch.equal(hidden.double(), total)
    expected = (
        total / (total.square().mean(dim=1, keepdim=True) + module.variance_epsilon).sqrt() * module.weight.double()
    )
    assert (normed.double() - expected).abs().max() < tolerance * expected.abs().max()


@CASES
def test_gate(dtype: torch.dtype, tolerance: float) -> None:
    step = CpuStep(*make_rows(8, dtype))
    numbers = torch.linspace(-80, 120, 1001).to(dtype)
    gated = step.gate(torch.stack([numbers, torch.full_like(numbers, 2.0)]).flatten()[None])[0].double()
    expected = 2 * numbers.double() * numbers.double().sigmoid()
    assert torch.allclose(gated, expected, rtol=tolerance, atol=0.0)


class Norm:
    """What is read of transformers' module."""

    variance_epsilon = 1e-3

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight


def make_rows(size: int, dtype: torch.dtype) -> tuple[Pages, Pages, Rows]:
    """Rows with random keys and values in two layers; pages are handed out so that no row's follow one another."""
    shape = PageShape(layers=2, heads=KV_HEADS, head_size=size, dtype=dtype, device=torch.device("cpu"))
    own, shared = Pages(40, shape), Pages(40, shape)
    draw = torch.Generator().manual_seed(0)
    for pool in (own, shared):
        pool.tokens.copy_(torch.randn(pool.tokens.shape, generator=draw))
    free = {pool: torch.randperm(40, generator=draw).tolist() for pool in (own, shared)}
    new = [
        NewRow(
            request=row,
            seed=0,
            prompt=row,
            prompt_ids=(1,) * (tokens + 1),
            prompt_pages=[free[shared].pop() for _ in range(pages_for(tokens))],
        )
        for row, (tokens, _) in enumerate(LENGTHS)
    ]
    rows = begin_rows(new, 4 * PAGE, torch.device("cpu"))
    rows.counts = torch.tensor([counts for _, counts in LENGTHS])
    rows.pages[:] = torch.tensor([[free[own].pop() for _ in range(4)] for _ in LENGTHS])
    return own, shared, rows


def in_order(pool: Pages, pages: torch.Tensor, tokens: torch.Tensor, row: int) -> Any:
    """A row's keys and values in layer 1: [2, K, tokens, D], float64."""
    taken = pool.tokens[1][:, pages[row]].double()
    return taken.transpose(1, 2).flatten(2, 3)[:, :, : int(tokens[row])]


def rotate(head: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair (d, d + D / 2) turned by its angle, as complex numbers."""
    lower, upper = head.chunk(2, dim=-1)
    half = len(cos) // 2
    turned = torch.complex(lower, upper) * torch.complex(cos[:half], sin[:half])
    return torch.cat([turned.real, turned.imag], dim=-1)
