"""The transformer layer on plain torch, through Megatron-Core's `ModuleSpec`.

Megatron's own local layer computes attention scores with a full mask; core attention here is torch's fused SDPA, which
needs no mask tensor: sequences are padded on the right, so causality alone keeps real tokens from padding.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig


class SdpaCoreAttention(torch.nn.Module):
    """Causal attention of one layer on this rank's heads."""

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, **_: Any) -> None:
        """The other arguments that Megatron-Core hands to a core attention (type, scale, process groups) are unused."""
        super().__init__()
        assert attn_mask_type == AttnMaskType.causal, f"core attention is causal, asked for {attn_mask_type}"
        self.grouped = config.num_query_groups != config.num_attention_heads

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **_: Any
    ) -> torch.Tensor:
        """Attention output.

        Args:
            query: [sequence, batch, heads / TP, head size].
            key: [sequence, batch, key-value heads / TP, head size].
            value: As `key`.
            attention_mask: Always None: attention is causal.

        Returns:
            [sequence, batch, heads / TP x head size].
        """
        assert attention_mask is None, "core attention is causal and takes no mask"
        sequence, batch, _heads, _size = query.shape
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            enable_gqa=self.grouped,
        )
        return mixed.permute(2, 0, 1, 3).reshape(sequence, batch, -1)


def layer_spec() -> ModuleSpec:
    """The specification of one decoder layer."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = ModuleSpec(module=SdpaCoreAttention)
    return spec
