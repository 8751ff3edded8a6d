"""What each rank computes of a global batch, and the tensors of a micro-batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pairs import hurtful_pairs
from support.places import place

from irpo_megatron.config import TrainingConfig
from irpo_megatron.errors import UserError
from irpo_megatron.training.batches import (
    Batching,
    WeightedPair,
    batching_of,
    pair_batch,
    row_of,
    share_of_rank,
)

PACKED = Batching(shared_prompt=True, pairs_a_micro_batch=None, tokens_a_micro_batch=60)
APART = replace(PACKED, shared_prompt=False)
PADDED = replace(PACKED, pairs_a_micro_batch=3)
MicroBatches = list[list[WeightedPair]]


def _weighted(count: int) -> list[WeightedPair]:
    return [
        WeightedPair(pair=pair, weight=1.0, reference_chosen=-1.0 - index, reference_rejected=-2.0 - index)
        for index, pair in enumerate(hurtful_pairs(count, vocabulary=20))
    ]


def _head(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    raise AssertionError("nothing is computed here")


def _tokens(item: WeightedPair, batching: Batching, *, with_rejected: bool) -> int:
    """What the model computes of a pair: each completion's last token predicts nothing."""
    completions = [item.pair.chosen_ids, item.pair.rejected_ids][: 1 + with_rejected]
    prompts = 1 if batching.shared_prompt else len(completions)
    return prompts * len(item.pair.prompt_ids) + sum(len(completion) - 1 for completion in completions)


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 25),
    data=st.integers(1, 5),
    pipeline=st.integers(1, 3),
    interleaved=st.booleans(),
    batching=st.sampled_from([PACKED, APART, PADDED]),
    with_rejected=st.booleans(),
)
def test_ranks_share_a_batch(
    count: int, data: int, pipeline: int, interleaved: bool, batching: Batching, with_rejected: bool
) -> None:
    batch = _weighted(count)
    layout = {"data": data, "pipeline": pipeline, "virtual_pipeline": 2 if interleaved and pipeline > 1 else 1}
    shares: list[MicroBatches] = [
        share_of_rank(batch, batching, place(data_rank=rank, **layout), with_rejected=with_rejected)
        for rank in range(data)
    ]
    items = [item for share in shares for micro_batch in share for item in micro_batch]
    counted = [item for item in items if item.weight == 1.0]
    assert sorted(item.pair.pair_id for item in counted) == sorted(item.pair.pair_id for item in batch)
    assert all(item in batch for item in counted), "nothing else of a pair changes"
    assert all(replace(item, weight=1.0) in batch for item in items if item not in counted)
    assert {item.weight for item in items} <= {0.0, 1.0}
    group = pipeline if layout["virtual_pipeline"] > 1 else 1
    for share in shares:
        assert share, "every rank has something to compute"
        assert len(share) % group == 0
        for micro_batch in share:
            _check_micro_batch(micro_batch, batching, with_rejected=with_rejected)
        # No more is computed for nobody than a group of micro-batches, or a rank that would be idle, asks for.
        for_nobody = sum(not _counts(micro_batch) for micro_batch in share)
        assert for_nobody < group or for_nobody == len(share) == group
    idle = [share for share in shares if not any(map(_counts, share))]
    assert len(idle) == max(0, data - count)


def _counts(micro_batch: list[WeightedPair]) -> bool:
    return any(item.weight for item in micro_batch)


def _check_micro_batch(micro_batch: list[WeightedPair], batching: Batching, *, with_rejected: bool) -> None:
    assert micro_batch
    if batching.pairs_a_micro_batch is not None:
        assert len(micro_batch) <= batching.pairs_a_micro_batch
    else:
        tokens = sum(_tokens(item, batching, with_rejected=with_rejected) for item in micro_batch)
        assert len(micro_batch) == 1 or tokens <= batching.tokens_a_micro_batch
    if any(item.weight == 0 for item in micro_batch):
        assert len(micro_batch) == 1


def test_what_keeps_a_rank_busy_is_short() -> None:
    batch = _weighted(3)
    (idle,) = share_of_rank(batch, PACKED, place(data=4, data_rank=3), with_rejected=True)
    shortest = min(batch, key=lambda item: _tokens(item, PACKED, with_rejected=True))
    assert idle == [replace(shortest, weight=0.0)]
    interleaved = place(pipeline=4, virtual_pipeline=2)
    share = share_of_rank(batch, replace(PACKED, tokens_a_micro_batch=1000), interleaved, with_rejected=True)
    assert [len(micro_batch) for micro_batch in share] == [3, 1, 1, 1]
    assert share[1:] == [[replace(shortest, weight=0.0)]] * 3


def test_chosen_and_rejected_of_a_pair_share_a_micro_batch() -> None:
    items = _weighted(4)
    items[3] = replace(items[3], weight=0.0)
    for batching in (PACKED, APART, PADDED):
        batch = pair_batch(items, batching, place(), _head, with_rejected=True)
        assert batch.sequences.count == 8
        for index, item in enumerate(items):
            for offset, completion in enumerate((item.pair.chosen_ids, item.pair.rejected_ids)):
                mine = batch.sequences.completion_of == 2 * index + offset
                assert batch.targets.tokens[mine].tolist() == list(completion)
        assert batch.has_rejected
        assert batch.pair_ids == tuple(item.pair.pair_id for item in items)
        assert batch.weights.tolist() == [1.0, 1.0, 1.0, 0.0]
        assert batch.chosen_tokens.tolist() == [len(item.pair.chosen_ids) for item in items]
        assert batch.reference_chosen.tolist() == [-1.0, -2.0, -3.0, -4.0]
        assert batch.reference_rejected.tolist() == [-2.0, -3.0, -4.0, -5.0]
        tokens = [_tokens(item, batching, with_rejected=True) for item in items]
        longest = max(tokens)
        assert batch.input.tokens.shape[1] == (4 * longest if batching is PADDED else sum(tokens))


def test_methods_without_a_dpo_term_compute_the_chosen_alone() -> None:
    items = _weighted(3)
    batch = pair_batch(items, PACKED, place(), _head, with_rejected=False)
    assert not batch.has_rejected
    assert batch.sequences.count == 3
    assert batch.targets.tokens.tolist() == [token for item in items for token in item.pair.chosen_ids]


def test_a_row_has_the_completions_that_are_trained_on() -> None:
    pair = _weighted(1)[0].pair
    assert row_of(pair, with_rejected=True).completions == [pair.chosen_ids, pair.rejected_ids]
    assert row_of(pair, with_rejected=False).completions == [pair.chosen_ids]
    assert row_of(pair, with_rejected=True).prompt == pair.prompt_ids


@pytest.mark.parametrize(
    ("shared_prompt", "transformer_engine", "is_shared"),
    [(None, False, True), (None, True, False), (True, False, True), (False, False, False), (False, True, False)],
)
def test_prompts_are_shared_where_the_attention_in_use_can(
    shared_prompt: bool | None, transformer_engine: bool, is_shared: bool
) -> None:
    training = TrainingConfig(shared_prompt=shared_prompt, micro_batch_tokens=77)
    found = batching_of(training, place(transformer_engine=transformer_engine))
    assert found == Batching(shared_prompt=is_shared, pairs_a_micro_batch=None, tokens_a_micro_batch=77)
    assert not found.padded
    padded = batching_of(training.model_copy(update={"micro_batch_size": 3}), place())
    assert padded.padded
    assert padded.pairs_a_micro_batch == 3


def test_prompts_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        batching_of(TrainingConfig(shared_prompt=True), place(transformer_engine=True))
    assert caught.value.seen == "training.shared_prompt = true, and attention is Transformer Engine's"
    assert caught.value.remedy.startswith("set training.shared_prompt=null")
