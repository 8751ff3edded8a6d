"""The order of the data, its share for a rank, and the padded tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.pairs import hurtful_pairs

from irpo_megatron.training.batches import (
    WeightedPair,
    pad_sequences,
    pair_batch,
    share_of_rank,
    step_indices,
    steps_an_epoch,
)

CPU = torch.device("cpu")


def _weighted(count: int) -> list[WeightedPair]:
    return [
        WeightedPair(pair=pair, weight=1.0, reference_chosen=-1.0 - index, reference_rejected=-2.0 - index)
        for index, pair in enumerate(hurtful_pairs(count, vocabulary=20))
    ]


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


@given(st.integers(1, 25), st.integers(1, 4), st.integers(1, 4))
def test_ranks_share_a_batch_without_loss_and_fill_up_with_weight_zero(count: int, micro: int, ranks: int) -> None:
    batch = _weighted(count)
    shares = [share_of_rank(batch, micro_batch_size=micro, data_rank=rank, data_size=ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "every rank runs the same number of micro-batches"
    flat = [item for share in shares for micro_batch in share for item in micro_batch]
    assert all(len(micro_batch) == micro for share in shares for micro_batch in share)
    assert sorted(item.pair.pair_id for item in flat if item.weight == 1.0) == sorted(
        item.pair.pair_id for item in batch
    )
    assert len(flat) - count < micro * ranks


def test_sequences_are_padded_on_the_right_and_targets_are_completion_tokens_alone() -> None:
    sequences = pad_sequences([((7, 8), (0, 5)), ((9,), (0, 0, 3, 1))], CPU)
    assert sequences.tokens.tolist() == [[7, 8, 0, 5], [9, 0, 0, 3]]
    assert sequences.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert sequences.targets.tolist() == [0, 5, 0, 0, 3, 1]
    assert sequences.target_rows.tolist() == [0, 0, 1, 1, 1, 1]
    # Position 1 (the prompt's last token, 8) predicts the first completion token, and so on.
    assert sequences.target_columns.tolist() == [1, 2, 0, 1, 2, 3]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(AssertionError, match="a prompt has at least one token"):
        pad_sequences([((), (1, 2))], CPU)


def test_chosen_and_rejected_of_a_pair_share_a_micro_batch() -> None:
    items = _weighted(3)
    batch = pair_batch(items, with_rejected=True, device=CPU)
    assert batch.sequences.count == 6
    for row, item in enumerate(items):
        for offset, completion in ((0, item.pair.chosen_ids), (3, item.pair.rejected_ids)):
            mine = batch.sequences.target_rows == row + offset
            assert batch.sequences.targets[mine].tolist() == list(completion)
    assert batch.chosen_tokens.tolist() == [len(item.pair.chosen_ids) for item in items]
    assert batch.reference_chosen.tolist() == [-1.0, -2.0, -3.0]
    assert batch.reference_rejected.tolist() == [-2.0, -3.0, -4.0]
    assert pair_batch(items, with_rejected=False, device=CPU).sequences.count == 3
