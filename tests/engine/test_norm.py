"""RMSNorm against its formula in float64, and against the implementation in transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from irpo_megatron.engine.norm import RMSNorm

SIZE = 16
EPSILON = 1e-5
SHAPES = [(SIZE,), (5, SIZE), (7, 1, SIZE)]


def _norm(*, dtype: torch.dtype = torch.float32, sequence_parallel: bool = False) -> RMSNorm:
    config: Any = SimpleNamespace(params_dtype=dtype, sequence_parallel=sequence_parallel)
    norm = RMSNorm(config, hidden_size=SIZE, eps=EPSILON)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(SIZE, generator=torch.Generator().manual_seed(1)))
    return norm


def _hidden(shape: tuple[int, ...], *, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(2))


def _expected(
    hidden: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x / sqrt(mean(x^2) + epsilon) x weight and both gradients, by autograd in float64."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    output = hidden / (hidden.pow(2).mean(dim=-1, keepdim=True) + EPSILON).sqrt() * weight
    output.backward(gradient.double())
    assert hidden.grad is not None
    assert weight.grad is not None
    return output.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e4])
def test_value_and_gradients(shape: tuple[int, ...], scale: float) -> None:
    norm, hidden = _norm(), _hidden(shape, scale=scale).requires_grad_()
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    output = norm(hidden)
    output.backward(gradient)
    assert hidden.grad is not None
    assert norm.weight.grad is not None
    expected = _expected(hidden, norm.weight, gradient)
    for ours, theirs in zip((output.detach(), hidden.grad, norm.weight.grad), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-6 * float(theirs.abs().max()), rtol=1e-5)


def test_it_is_what_transformers_computes() -> None:
    ours, theirs = _norm(), LlamaRMSNorm(SIZE, eps=EPSILON)
    theirs.weight.data.copy_(ours.weight.data)
    results = []
    for norm in (ours, theirs):
        hidden = _hidden((5, SIZE)).requires_grad_()
        output = norm(hidden)
        output.pow(3).sum().backward()
        results.append((output, hidden.grad, norm.weight.grad))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_gradcheck() -> None:
    """What is differentiated rounds to fp32, so the step is large and the tolerance that of its square."""
    hidden, weight = _hidden((3, SIZE), scale=1.0).double().requires_grad_(), _norm().weight.detach().double()
    norm = _norm(dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(weight)
    torch.autograd.gradcheck(lambda given, _: norm(given), (hidden, norm.weight), eps=1e-2, atol=2e-3, rtol=2e-3)


def test_bf16_is_rounded_once() -> None:
    norm, hidden = _norm(dtype=torch.bfloat16), _hidden((5, SIZE)).bfloat16().requires_grad_()
    gradient = torch.randn((5, SIZE), generator=torch.Generator().manual_seed(3)).bfloat16()
    output = norm(hidden)
    output.backward(gradient)
    assert hidden.grad is not None
    assert norm.weight.grad is not None
    expected = _expected(hidden, norm.weight, gradient)
    for ours, theirs in zip((output.detach(), hidden.grad, norm.weight.grad), expected, strict=True):
        assert ours.dtype == torch.bfloat16
        # Half a unit in the last of bf16's eight bits, and fp32's own rounding.
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=2**-8)


@pytest.mark.parametrize("is_set", [True, False])
def test_the_weight_carries_megatrons_mark(is_set: bool) -> None:
    """Under sequence parallelism Megatron sums the gradients of what is marked over the tensor-parallel ranks."""
    assert _norm(sequence_parallel=is_set).weight.sequence_parallel is is_set  # type: ignore[attr-defined]
