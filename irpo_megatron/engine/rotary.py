"""Rotary position embeddings (RoFormer, arXiv 2104.09864) as in Llama: halves, not neighbours, are paired."""

from __future__ import annotations

import math
from typing import Any

import torch

from irpo_megatron.engine.rope_config import RopeScaling


def rotary_table(
    positions: torch.Tensor, *, size: int, base: float, scaling: RopeScaling | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position's angles.

    Args:
        positions: [t] position ids.
        size: Head size; even.

    Returns:
        Two tensors [t, 1, size / 2], fp32.
    """
    angles = positions.float()[:, None, None] * frequencies(size, base, scaling).to(positions.device)
    return angles.cos(), angles.sin()


def frequencies(size: int, base: float, scaling: RopeScaling | None = None) -> torch.Tensor:
    """The angle from one position to the next, for each pair of a head's components.

    Returns:
        [size / 2], fp32, as transformers computes them.
    """
    plain = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    if scaling is None:
        return plain
    turns = scaling.original_context / (2 * math.pi / plain)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def rotate(heads: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn every head of every token by its position's angles.

    Args:
        heads: [t, heads, size].

    Returns:
        As `heads`, contiguous.
    """
    rotated: torch.Tensor = _Rotate.apply(heads, *table)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back: nothing but the table is kept for it."""

    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(heads, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        return _turn(gradient, *ctx.saved_tensors, sign=-1), None, None


def _turn(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, sign: int) -> torch.Tensor:
    first, second = heads.float().chunk(2, dim=-1)
    turned = torch.empty(heads.shape, dtype=torch.float32, device=heads.device)
    into_first, into_second = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin, value=sign)
    return turned.to(heads.dtype)
