"""RMSNorm (arXiv 1910.07467) on plain torch; Megatron-Core's local norm refuses sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """x / rms(x) x weight, computed in fp32."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        """A norm over the last dimension; its weight is marked as Megatron-Core wants it."""
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Under sequence parallelism each rank sees other tokens: the mark makes Megatron sum this gradient over them.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalise [..., hidden size]."""
        normalised: torch.Tensor = _Normalise.apply(hidden, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return normalised


class _Normalise(torch.autograd.Function):
    """Keeps its input and one number a token; torch's own keeps several tensors of the input's size on a CPU."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = hidden.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        normalised: torch.Tensor = wide * scale
        return normalised.mul_(weight.float()).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """With n = x r and r = 1 / rms: dx = r (g w - n mean(g w n)), dw = sum over tokens of g n."""
        hidden, weight, scale = ctx.saved_tensors
        gradient = gradients[0].float()
        normalised = hidden.float() * scale
        product = gradient * normalised
        in_weight = product.reshape(-1, hidden.shape[-1]).sum(0)
        along = (product @ weight.float()).div_(hidden.shape[-1])[..., None]
        in_hidden = torch.mul(gradient, weight, out=product).sub_(normalised.mul_(along)).mul_(scale)
        return in_hidden.to(hidden.dtype), in_weight.to(weight.dtype), None
