"""Attention of the decoding loop over keys and values in pages.

A row's tokens lie in pages: those of its prompt, which the other samples of the prompt read with it, and its own. Each
page is multiplied once, by all rows that read it. A page's result is a softmax average of its values; a row's is the
average of its pages' results, weighted by the softmax of their log-sum-exps, which is one softmax over all of them.

Shapes: B rows, H heads, K key-value heads, D head size, P pages of PAGE tokens, R rows at most that read one page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from irpo_megatron.generation.decoding.pages import PAGE, Pages

IMPLEMENTATION = "irpo_pages"
"""The name that transformers knows `attend` by."""
# exp of it is 0 beside any score, and it is finite: a page that a row sees nothing of stays free of NaN.
_HIDDEN = -1e30


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


@dataclass(frozen=True, slots=True)
class Readers:
    """The pages of a pool that a step reads, and who reads them."""

    pool: Pages
    rows: Tensor
    """[P, R]: rows that read a page, filled up with any row."""
    hidden: Tensor
    """[P, 1, 1, PAGE]: 0 for the tokens that a page holds, a large negative number behind them."""
    parts: Tensor
    """[B, most pages of a row]: where a row's results lie among [P R]; -1 for none."""

    def results(self, layer: int, query: Tensor) -> tuple[Tensor, Tensor]:
        """What each page comes to by itself: query [B, H, D] -> log-sum-exps [P R, H], fp32, averages [P R, H, D]."""
        (pages, readers), (_, heads, size) = self.rows.shape, query.shape
        keys, values = self.pool.tokens[layer, :, :pages]
        kv_heads = keys.shape[1]
        asked = query.index_select(0, self.rows.flatten()).view(pages, readers, kv_heads, heads // kv_heads, size)
        scores = torch.matmul(asked.transpose(1, 2).flatten(2, 3), keys.transpose(2, 3)).float().add_(self.hidden)
        weights = scores.softmax(dim=-1)
        log_sums = scores.amax(dim=-1) - weights.amax(dim=-1).log_()
        averages = torch.matmul(weights.to(values.dtype), values)
        by_reader = (pages, kv_heads, readers, heads // kv_heads)
        return (
            log_sums.view(by_reader).transpose(1, 2).reshape(pages * readers, heads),
            averages.view(*by_reader, size).transpose(1, 2).reshape(pages * readers, heads, size),
        )


def find_readers(pool: Pages, pages: Tensor, tokens: Tensor, ranks: Tensor) -> Readers:
    """Turn the rows' pages into the pages' rows.

    Args:
        pages: [B, any]: each row's pages, in order; what stands behind the last one is not looked at.
        tokens: [B]: tokens that each row has in them.
        ranks: [B]: which of a page's readers a row is.
    """
    counts = (tokens + PAGE - 1) // PAGE
    pages = pages[:, : int(counts.max())]
    ordinals = torch.arange(pages.shape[1], device=pages.device)
    there = ordinals < counts.unsqueeze(-1)
    row, ordinal = there.nonzero(as_tuple=True)
    page = pages[there]
    rows = pages.new_zeros(pool.used, int(ranks.max()) + 1)
    rows[page, ranks[row]] = row
    filled = pages.new_zeros(pool.used)
    filled[page] = tokens[row] - ordinal * PAGE
    hidden = torch.where(torch.arange(PAGE, device=pages.device) < filled.unsqueeze(-1), 0.0, _HIDDEN)
    parts = torch.where(there, pages * rows.shape[1] + ranks.unsqueeze(-1), -1)
    return Readers(pool, rows, hidden.view(-1, 1, 1, PAGE), parts)


class StepAttention:
    """Attention of one new token a row."""

    def __init__(self, own: Readers, shared: Readers, pages: Tensor, counts: Tensor) -> None:
        """
        Args:
            own: The rows' own pages, the one that takes the new token included.
            shared: Their prompts' pages.
            pages: [B, any]: each row's own pages, in order.
            counts: [B]: own tokens that each row has in pages already.
        """
        self._own, self._shared = own, shared
        heads = own.pool.tokens.shape[3]
        page = pages.gather(1, (counts // PAGE).unsqueeze(-1))
        place = (page * heads + torch.arange(heads, device=page.device)) * PAGE + (counts % PAGE).unsqueeze(-1)
        # [B K]: where the new token goes, among all tokens of all heads of all own pages.
        self._places = place.flatten()
        # [B, most pages of a row]: its results among those of own and shared pages; the last, nothing, for none.
        offset, nothing = own.rows.numel(), own.rows.numel() + shared.rows.numel()
        self._parts = torch.cat(
            [
                torch.where(own.parts < 0, nothing, own.parts),
                torch.where(shared.parts < 0, nothing, shared.parts + offset),
            ],
            dim=1,
        )

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, H, D], key and value [B, K, D] of the new tokens -> [B, H, D]."""
        for store, tokens in zip(self._own.pool.tokens[layer], (key, value), strict=True):
            store.view(-1, tokens.shape[-1]).index_copy_(0, self._places, tokens.flatten(0, 1))
        (own_sums, own), (shared_sums, shared) = self._own.results(layer, query), self._shared.results(layer, query)
        no_sum = own_sums.new_full((1, own_sums.shape[1]), _HIDDEN)
        shares = torch.cat([own_sums, shared_sums, no_sum])[self._parts].softmax(dim=1).to(own.dtype)
        averages = torch.cat([own, shared, torch.zeros_like(own[:1])])[self._parts]
        return averages.mul_(shares.unsqueeze(-1)).sum(dim=1)
