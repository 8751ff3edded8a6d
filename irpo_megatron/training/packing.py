"""Which rank, and which micro-batch, computes which items of a global batch: pure arithmetic on token counts.

The optimizer sees the same pairs however they are packed: items move between ranks and micro-batches of one global
batch, never between batches.
"""

from __future__ import annotations

from collections.abc import Sequence


def share_evenly(tokens: Sequence[int], ranks: int) -> list[list[int]]:
    """Give every item to a rank: the longest first, each to the rank that has the least to do.

    Args:
        tokens: Of each item.

    Returns:
        For each rank the indices of its items, longest first; ranks stay empty where there are too few items.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in _longest_first(tokens):
        # An empty rank comes before any other, so that none stays idle while an item is left.
        rank = min(range(ranks), key=lambda rank: (bool(shares[rank]), loads[rank], rank))
        shares[rank].append(index)
        loads[rank] += tokens[index]
    return shares


def pack(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """First-fit decreasing: items into as few bins of `budget` tokens as that rule finds.

    An item longer than the budget has a bin of its own.

    Returns:
        For each bin the indices of its items, longest first.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(tokens):
        number = next((number for number, left in enumerate(room) if tokens[index] <= left), None)
        if number is None:
            number = len(bins)
            bins.append([])
            room.append(budget)
        bins[number].append(index)
        room[number] -= tokens[index]
    return bins


def chunk(tokens: Sequence[int], size: int) -> list[list[int]]:
    """`size` items a bin, neighbours in length together, so that padding them to the longest costs least."""
    order = _longest_first(tokens)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _longest_first(tokens: Sequence[int]) -> list[int]:
    return sorted(range(len(tokens)), key=lambda index: (-tokens[index], index))
