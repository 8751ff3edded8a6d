"""Pairs chosen to hurt: uneven lengths, token id 0 inside completions, prefixes, repeats, pad == end."""

from __future__ import annotations

import random
from collections.abc import Iterable

from irpo_megatron.records import Pair

Ids = tuple[int, ...]


def hurtful_pairs(count: int, *, vocabulary: int, seed: int = 0) -> list[Pair]:
    """`count` pairs of random tokens below `vocabulary`."""
    random_ = random.Random(seed)

    def ids(low: int, high: int) -> Ids:
        return tuple(random_.randrange(vocabulary) for _ in range(random_.randint(low, high)))

    rows: list[tuple[Ids, Ids, Ids]] = []
    for index in range(count):
        prompt, chosen, rejected = ids(1, 12), ids(1, 20), ids(1, 20)
        if index % 5 == 1:
            rejected = (*chosen, *ids(1, 4))  # the chosen one is a prefix of the rejected one
        if index % 5 == 2:
            chosen, rejected = (0, 0, *chosen), (0, *rejected)
        if index % 5 == 3 and rows:
            chosen = rows[-1][1]  # the same completion again, under another prompt
        if chosen == rejected:
            rejected = (*rejected, 1)
        rows.append((prompt, chosen, rejected))
    return _as_pairs(rows)


def every_hurtful_pair(*, vocabulary: int) -> list[Pair]:
    """Seventeen pairs, each with a trap of its own; the token that ends a completion and pads is 0.

    In batches of four they span five steps, of which the last sees one pair.
    """
    random_ = random.Random(1)

    def ids(count: int) -> Ids:
        return tuple(random_.randrange(1, vocabulary) for _ in range(count))

    prompt, chosen, rejected, last = ids(5), (*ids(7), 0), (*ids(9), 0), vocabulary - 1
    cases = [
        (ids(4), (*ids(6), 0), (*ids(3), 0)),
        (ids(1), ids(1), ids(2)),  # nothing shorter exists: one token each, none of which is the end
        (ids(20), (*ids(44), 0), (*ids(50), 0)),  # longer than a small micro-batch's budget
        (ids(3), (0,), (0, 0)),  # nothing but ends, and the chosen completion is a prefix of the rejected one
        (prompt, chosen, rejected),
        (prompt, chosen, (*ids(4), 0)),  # the same winner against another loser of the same prompt
        (prompt, (*ids(2), 0), rejected),  # the same loser again
        (prompt, chosen, rejected),  # all of it again
        (ids(2), chosen, (*ids(5), 0)),  # a completion that was there, under another prompt
        (ids(6), chosen[:-1], (*chosen[:-1], *ids(3), 0)),  # the chosen completion is a prefix of the rejected one
        (ids(7), (*rejected, 0), rejected),  # the rejected completion is a prefix of the chosen one
        (ids(5), (0, *ids(2), 0, 0, *ids(2), 0), (0, *ids(1), 0)),  # ends at the start and in the midst
        ((0, *ids(3), 0), (*ids(4), 0), (*ids(4), 0)),  # ends in the prompt
        (ids(4), (last, last, 0), (last, *ids(3), last)),  # the last token of the vocabulary
        (chosen, chosen, rejected),  # a completion that repeats its prompt
        (ids(16), (*ids(1), 0), (*ids(23), 0)),
        (ids(9), (*ids(18), 0), (*ids(2), 0)),
    ]
    return _as_pairs(cases)


def _as_pairs(cases: Iterable[tuple[Ids, Ids, Ids]]) -> list[Pair]:
    """Records of (prompt, chosen, rejected)."""
    return [
        Pair(
            pair_id=f"train-{index:06d}/000",
            prompt_id=f"train-{index:06d}",
            prompt="p",
            chosen="c",
            rejected="r",
            prompt_ids=prompt,
            chosen_ids=chosen,
            rejected_ids=rejected,
            chosen_sample=0,
            rejected_sample=1,
            held_out=False,
        )
        for index, (prompt, chosen, rejected) in enumerate(cases)
    ]
