"""The order of the data is a function of the seed alone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.seeds import derive_seed
from irpo_megatron.training.order import step_indices, steps_an_epoch


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3), st.booleans())
def test_an_epoch_visits_every_pair_once(pairs: int, batch: int, epoch: int, shuffle: bool) -> None:
    steps = steps_an_epoch(pairs, batch)
    visited = [
        step_indices(epoch * steps + step, pairs=pairs, global_batch_size=batch, shuffle=shuffle, seed=3, iteration=1)
        for step in range(steps)
    ]
    assert sorted(index for indices in visited for index in indices) == list(range(pairs))
    assert all(len(indices) == batch for indices in visited[:-1])
    assert 1 <= len(visited[-1]) <= batch


def test_order_differs_between_epochs_iterations_and_seeds_and_repeats_for_the_same() -> None:
    def order(step: int, seed: int, iteration: int) -> list[int]:
        return step_indices(step, pairs=40, global_batch_size=40, shuffle=True, seed=seed, iteration=iteration)

    assert order(0, 1, 1) == order(0, 1, 1)
    assert len({tuple(order(*key)) for key in [(0, 1, 1), (1, 1, 1), (0, 2, 1), (0, 1, 2)]}) == 4
    assert step_indices(1, pairs=5, global_batch_size=2, shuffle=False, seed=0, iteration=1) == [2, 3]


def test_the_shuffle_is_pythons_own() -> None:
    """So that a run that goes on under a later version sees the same batches."""
    order = list(range(7))
    random.Random(derive_seed(5, "order", 2, 1)).shuffle(order)
    # Seven pairs in batches of three make three steps; step 4 is the second one of epoch 1.
    assert step_indices(4, pairs=7, global_batch_size=3, shuffle=True, seed=5, iteration=2) == order[3:6]


def test_steps_of_different_epochs_may_be_asked_for_in_any_order() -> None:
    def indices(step: int) -> list[int]:
        return step_indices(step, pairs=9, global_batch_size=4, shuffle=True, seed=1, iteration=1)

    forwards = [indices(step) for step in range(9)]
    assert [indices(step) for step in reversed(range(9))] == forwards[::-1]
