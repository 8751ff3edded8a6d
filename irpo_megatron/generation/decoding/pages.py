"""Keys and values in pages: memory is taken a page at a time and goes back when the last row that reads it is gone."""

from __future__ import annotations

import heapq
import math
import mmap
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAGE = 32
"""Tokens a page: a row wastes half of one on average."""
_FREE_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class PageShape:
    """What a page holds of each token."""

    layers: int
    heads: int
    """Key-value heads."""
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def page_bytes(self) -> int:
        """Keys and values of all layers."""
        return self.layers * self.heads * PAGE * 2 * self.head_size * self.dtype.itemsize


def page_shape(model: Any) -> PageShape:
    """That of a transformers model's keys and values."""
    config = model.config
    return PageShape(
        layers=config.num_hidden_layers,
        heads=config.num_key_value_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        dtype=model.dtype,
        device=model.device,
    )


class Pages:
    """A pool of pages, the same ones in every layer.

    Attributes:
        tokens: [layers, 2, pages, key-value heads, PAGE, head size]: a layer's keys, and its values.
        used: The pages that are taken lie below this number; what else lies there holds old, finite numbers.
        reserved: Pages that the rows that are decoded now may come to need.
    """

    def __init__(self, capacity: int, shape: PageShape) -> None:
        self.tokens = _zeros((shape.layers, 2, capacity, shape.heads, PAGE, shape.head_size), shape.dtype, shape.device)
        self.used = 0
        self.reserved = 0
        self._free: list[int] = []

    def touched_with(self, more: int) -> int:
        """Pages that may have been touched by the time that `more` are reserved and taken."""
        return max(self.used, self.reserved + more)

    def take(self, count: int) -> list[int]:
        """`count` free pages, those with low numbers first so that `used` stays small."""
        taken = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
        fresh = range(self.used, self.used + count - len(taken))
        self.used += len(fresh)
        return taken + list(fresh)

    def give_back(self, pages: list[int]) -> None:
        """Pages that nobody reads any more."""
        for page in pages:
            heapq.heappush(self._free, page)

    def close_gaps(self) -> Tensor | None:
        """Move the last pages into the free ones below, where these are many: each step reads all up to the last.

        Returns:
            [capacity]: the new number of each page; None where nothing moved.
        """
        taken = self.used - len(self._free)
        if self.used - taken <= self.used * _FREE_SHARE:
            return None
        free = sorted(self._free)
        gaps = [page for page in free if page < taken]
        last = sorted(set(range(taken, self.used)).difference(free))
        self.tokens[:, :, gaps] = self.tokens[:, :, last]
        moved = torch.arange(self.tokens.shape[2], device=self.tokens.device)
        moved[last] = torch.tensor(gaps, dtype=torch.long, device=moved.device)
        self._free, self.used = [], taken
        return moved


def pages_for(tokens: int) -> int:
    """Pages that so many tokens fill."""
    return -(-tokens // PAGE)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, since what a row does not see is multiplied by 0 and must be finite.

    A CPU's memory is handed out as it is first touched, and in huge pages where the system has them: a step reads all
    of it, twice as fast from those.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
