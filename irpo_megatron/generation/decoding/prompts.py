"""Attention over whole prompts, which keeps their keys and values in pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from irpo_megatron.generation.decoding.pages import PAGE, Pages

IMPLEMENTATION = "irpo_pages"
"""The name that transformers knows `attend` by."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    store: PromptPages | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The attention that transformers' model code calls: each token of a sequence sees itself and those before it.

    Args:
        query: [B, H, L, D].
        key: [B, K, L, D].
        value: [B, K, L, D].
        store: Where keys and values are to be kept.

    Returns:
        [B, L, H, D], and no weights.
    """
    if store is not None:
        store.keep(module.layer_idx, key, value)
    output = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2).contiguous(), None


@dataclass(frozen=True, slots=True)
class PromptPages:
    """Where the keys and values of whole prompts, padded on the right, are kept."""

    pool: Pages
    pages: Tensor
    """[pages]: prompt after prompt."""
    filled: Tensor
    """[prompts, pages of the longest], bool: which pages of the padded prompts those are."""

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep what a layer has computed for the prompts: [prompts, K, L, D] each."""
        pages = self.filled.shape[1]
        for store, tokens in zip(self.pool.tokens[layer], (key, value), strict=True):
            padded = pad(tokens, (0, 0, 0, pages * PAGE - tokens.shape[2]))
            store[self.pages] = padded.view(*tokens.shape[:2], pages, PAGE, -1).transpose(1, 2)[self.filled]
