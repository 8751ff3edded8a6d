"""Which pairs an optimizer step sees: a function of the seed alone."""

from __future__ import annotations

import functools
import random

from irpo_megatron.seeds import derive_seed


def steps_an_epoch(pairs: int, global_batch_size: int) -> int:
    """Optimizer steps that visit every pair once; the last one may see fewer pairs than the others."""
    return -(-pairs // global_batch_size)


def step_indices(
    step: int, *, pairs: int, global_batch_size: int, shuffle: bool, seed: int, iteration: int
) -> list[int]:
    """Which pairs optimizer step `step` (0-based) sees.

    Returns:
        Between 1 and `global_batch_size` indices below `pairs`.
    """
    epoch, step_in_epoch = divmod(step, steps_an_epoch(pairs, global_batch_size))
    order = _shuffled(pairs, derive_seed(seed, "order", iteration, epoch)) if shuffle else range(pairs)
    return list(order[step_in_epoch * global_batch_size : (step_in_epoch + 1) * global_batch_size])


@functools.lru_cache(maxsize=1)
def _shuffled(pairs: int, seed: int) -> tuple[int, ...]:
    """The order of one epoch; the last one is remembered, since every step of the epoch asks for it."""
    order = list(range(pairs))
    random.Random(seed).shuffle(order)
    return tuple(order)
