"""The gated activation against its formula in float64."""

from __future__ import annotations

import pytest
import torch

from irpo_megatron.engine.feed_forward import gated_silu

SHAPES = [(6,), (5, 8), (4, 1, 12)]


def _given(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Some so far from 0 that the sigmoid is 0 or 1."""
    return 10 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _expected(gate_and_up: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = gate_and_up.detach().double().requires_grad_()
    half = wide.shape[-1] // 2
    gate, up = wide[..., :half], wide[..., half:]
    output = gate / (1 + torch.exp(-gate)) * up
    output.backward(gradient.double())
    assert wide.grad is not None
    return output.detach(), wide.grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)], ids=str)
def test_value_and_gradient(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    given = _given(shape, 0).to(dtype).requires_grad_()
    gradient = _given((*shape[:-1], shape[-1] // 2), 1).to(dtype)
    output = gated_silu(given)
    output.backward(gradient)
    assert given.grad is not None
    for ours, theirs in zip((output.detach(), given.grad), _expected(given, gradient), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)


def test_gradcheck() -> None:
    torch.autograd.gradcheck(gated_silu, (_given((3, 8), 2).double().requires_grad_(),))
