"""Pairs chosen to hurt: uneven lengths, token id 0 inside completions, prefixes, repeats, pad == end."""

from __future__ import annotations

import random

from irpo_megatron.records import Pair


def hurtful_pairs(count: int, *, vocabulary: int, seed: int = 0) -> list[Pair]:
    """`count` pairs of random tokens below `vocabulary`."""
    random_ = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(random_.randrange(vocabulary) for _ in range(random_.randint(low, high)))

    rows = []
    for index in range(count):
        prompt, chosen, rejected = ids(1, 12), ids(1, 20), ids(1, 20)
        if index % 5 == 1:
            rejected = (*chosen, *ids(1, 4))  # the chosen one is a prefix of the rejected one
        if index % 5 == 2:
            chosen, rejected = (0, 0, *chosen), (0, *rejected)
        if index % 5 == 3 and rows:
            chosen = rows[-1].chosen_ids  # the same completion again, under another prompt
        if chosen == rejected:
            rejected = (*rejected, 1)
        rows.append(
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
        )
    return rows
