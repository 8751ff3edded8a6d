"""The gated feed-forward layer on plain torch, with an activation that keeps nothing but its input.

Megatron-Core's own, without its compiled kernels, keeps four tensors of the layer's width for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig


class GatedFeedForward(MLP):  # type: ignore[misc]
    """fc2(silu(gate) x up), where fc1 makes gate and up in one product."""

    def __init__(self, config: TransformerConfig) -> None:
        """Megatron-Core's column- and row-parallel matrices."""
        super().__init__(config, MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear))

    def forward(self, hidden: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """[t, 1, hidden size] -> the same, and no bias."""
        gate_and_up, _bias = self.linear_fc1(hidden)
        output, _bias = self.linear_fc2(gated_silu(gate_and_up))
        return output, None


def gated_silu(gate_and_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) x up.

    Args:
        gate_and_up: [..., 2 f], the gate's half first.

    Returns:
        [..., f].
    """
    gated: torch.Tensor = _GatedSilu.apply(gate_and_up)  # type: ignore[no-untyped-call]
    return gated


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """d silu(x) / dx = s + x s (1 - s), where s = sigmoid(x); both halves are written where they belong."""
        (gradient,), (gate_and_up,) = gradients, ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_up)
        in_gate, in_up = result.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=in_gate)
        torch.ops.aten.silu.out(gate, out=in_up).mul_(gradient)
        return result
