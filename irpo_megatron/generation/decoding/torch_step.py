"""A step's operations in torch's own, on any device.

In attention each page is multiplied once, by all rows that read it. A page's result is a softmax average of its values;
a row's is the average of its pages' results, weighted by the softmax of their log-sum-exps, which is one softmax over
all of them.

Shapes: B rows, H heads, K key-value heads, D head size, P pages of PAGE tokens, R rows at most that read one page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from irpo_megatron.generation.decoding.layers import Rotation, norm
from irpo_megatron.generation.decoding.pages import PAGE, Pages
from irpo_megatron.generation.decoding.rows import Rows

# exp of it is 0 beside any score, and it is finite: a page that a row sees nothing of stays free of NaN.
_HIDDEN = -1e30


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


class TorchStep:
    """`layers.Operations` for one new token a row."""

    def __init__(self, own: Pages, shared: Pages, rows: Rows) -> None:
        """
        Args:
            own: The rows' own pages, those that take the new tokens included.
            shared: Their prompts' pages.
        """
        pages, counts = rows.pages, rows.counts
        self._own = own_readers = find_readers(own, pages, counts + 1, torch.zeros_like(counts))
        self._shared = shared_readers = find_readers(shared, rows.prompt_pages, rows.prompt_tokens, rows.ranks())
        heads = own.tokens.shape[3]
        page = pages.gather(1, (counts // PAGE).unsqueeze(-1))
        place = (page * heads + torch.arange(heads, device=page.device)) * PAGE + (counts % PAGE).unsqueeze(-1)
        # [B K]: where the new token goes, among all tokens of all heads of all own pages.
        self._places = place.flatten()
        # [B, most pages of a row]: its results among those of own and shared pages; the last, nothing, for none.
        offset = own_readers.rows.numel()
        nothing = offset + shared_readers.rows.numel()
        self._parts = torch.cat(
            [
                torch.where(own_readers.parts < 0, nothing, own_readers.parts),
                torch.where(shared_readers.parts < 0, nothing, shared_readers.parts + offset),
            ],
            dim=1,
        )

    def attend(self, layer: int, heads: Tensor, rotation: Rotation, scaling: float) -> Tensor:
        """See the protocol."""
        kv_heads, size = self._own.pool.tokens.shape[3], heads.shape[-1]
        turning, value = heads[:, :-kv_heads], heads[:, -kv_heads:]
        lower, upper = rotation.sin.chunk(2, dim=-1)
        # Times a head that is rolled by half, this is what the rotation adds.
        turn = torch.cat([-lower, upper], dim=-1).unsqueeze(1)
        turned = torch.addcmul(turning * rotation.cos.unsqueeze(1), turning.roll(size // 2, dims=-1), turn)
        query, key = turned[:, :-kv_heads] * scaling, turned[:, -kv_heads:]
        for store, tokens in zip(self._own.pool.tokens[layer], (key, value), strict=True):
            store.view(-1, size).index_copy_(0, self._places, tokens.flatten(0, 1))
        (own_sums, own), (shared_sums, shared) = self._own.results(layer, query), self._shared.results(layer, query)
        no_sum = own_sums.new_full((1, own_sums.shape[1]), _HIDDEN)
        shares = torch.cat([own_sums, shared_sums, no_sum])[self._parts].softmax(dim=1).to(own.dtype)
        averages = torch.cat([own, shared, torch.zeros_like(own[:1])])[self._parts]
        return averages.mul_(shares.unsqueeze(-1)).sum(dim=1)

    def add_and_norm(self, hidden: Tensor, change: Tensor, module: Any) -> Tensor:
        """See the protocol."""
        return norm(module, hidden.add_(change))

    def gate(self, gate_up: Tensor) -> Tensor:
        """See the protocol."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up
