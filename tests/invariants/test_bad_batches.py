"""A batch whose loss or gradient is not finite is left out as if it did not exist, or stops training: at any layout."""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import Variant, final_weights, metrics_of, run_variants
from support.worlds import (
    BATCHES,
    FEW_TOKENS,
    MANY_TOKENS,
    ONE_PAIR,
    PAIRS,
    World,
    assert_same_steps,
    assert_same_weights,
    float64,
    last_checkpoint,
)

from irpo_megatron.artifacts import read_json
from irpo_megatron.config import ParallelConfig
from irpo_megatron.records import ReferenceLogProb, read_rows, write_rows
from irpo_megatron.training import step as step_module
from irpo_megatron.training.rows import row_id

ONE_PROCESS = ParallelConfig()
EPOCH = BATCHES[:5]
BATCH = 2
"""Of these, the one with the bad pair."""
BAD_PAIR = PAIRS[9]


@pytest.fixture(scope="module")
def world(worlds: dict[str, World]) -> World:
    return worlds["untied"]


@pytest.fixture(scope="module")
def references(world: World) -> dict[str, Path]:
    """A reference as it is, and with a number that is not finite for the loser of one pair."""
    variant = world.variant("bad-batches", ONE_PROCESS, max_steps=1)
    assert variant.reference is not None
    run_variants(1, [variant])
    sound = variant.reference.output
    found = {"sound": sound}
    for name, pair, value in (("nan", BAD_PAIR, math.nan), ("inf", PAIRS[1], math.inf)):
        found[name] = sound.with_name(name)
        shutil.copytree(sound, found[name])
        shard = found[name] / "reference-00000.parquet"
        rows = {row.row_id: row for row in read_rows(shard, ReferenceLogProb)}
        victim = row_id(pair.prompt_ids, pair.rejected_ids)
        rows[victim] = replace(rows[victim], log_prob=value)
        write_rows(shard, list(rows.values()), ReferenceLogProb)
    return found


def variant_of(world: World, name: str, parallel: ParallelConfig, reference: Path, **training: Any) -> Variant:
    """One epoch, if `training` does not say otherwise."""
    variant = world.variant(f"bad-batches-{name}", parallel, **{"epochs": 1, **FEW_TOKENS, **training})
    return Variant(None, variant.training.model_copy(update={"reference": reference}))


def assert_left_out(world: World, variant: Variant, batch: int) -> None:
    """Training is what it is without that batch."""
    metrics = metrics_of(variant)
    left_out = metrics.pop(batch)
    assert left_out["step"] == batch + 1
    assert left_out["pairs"] == len(EPOCH[batch])
    names = ("loss", "dpo", "nll", "chosen_log_prob", "rejected_log_prob", "margin", "accuracy")
    assert [left_out[name] for name in (*names, "gradient_norm", "learning_rate")] == [None] * 9
    expected = float64(world.folder, EPOCH[:batch] + EPOCH[batch + 1 :])
    assert_same_steps(variant, metrics, expected)
    (weights,) = final_weights([last_checkpoint(variant, steps=len(EPOCH))])
    assert_same_weights(variant, weights, expected)


@pytest.mark.parametrize(
    "parallel",
    [
        ONE_PROCESS,
        ParallelConfig(data=2),
        ParallelConfig(tensor=2),
        ParallelConfig(context=2),
        ParallelConfig(pipeline=2, virtual_pipeline=2),
    ],
    ids=lambda parallel: "-".join(parallel.model_dump(exclude_defaults=True)) or "one",
)
def test_a_bad_batch_is_left_out_or_stops_training(
    parallel: ParallelConfig, world: World, references: dict[str, Path]
) -> None:
    name = "-".join(parallel.model_dump(exclude_defaults=True))
    skipping = variant_of(world, f"skipping-{name}", parallel, references["nan"], skip_bad_batches=1)
    stopped = variant_of(world, f"stopped-{name}", parallel, references["nan"])
    run_variants(parallel.world_size, [skipping])
    assert_left_out(world, skipping, BATCH)

    said = rf"NonFiniteStep: the loss is not finite for the pairs {BAD_PAIR.pair_id}; nothing was updated"
    with pytest.raises(Exception, match=said):
        run_variants(parallel.world_size, [stopped])
    assert len(metrics_of(stopped)) == BATCH
    assert not last_checkpoint(stopped, steps=len(EPOCH)).exists()


def test_after_a_bad_first_batch_the_second_is_held_against_ln_2(world: World, references: dict[str, Path]) -> None:
    variant = variant_of(world, "first", ONE_PROCESS, references["inf"], skip_bad_batches=1, **ONE_PAIR)
    run_variants(1, [variant])
    assert metrics_of(variant)[1]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert_left_out(world, variant, 0)


def test_batches_left_out_before_an_interruption_count(world: World, references: dict[str, Path]) -> None:
    """The bad pair comes by again in the second epoch, when no more may be left out."""
    parallel = ParallelConfig(data=2)
    variant = variant_of(world, "counted", parallel, references["nan"], skip_bad_batches=1, epochs=2)
    run_variants(2, [replace(variant, stop_after=4)])
    point = variant.training.output / "resume" / "step-000004"
    assert read_json(point / "training.json")["skipped_batches"] == 1
    with pytest.raises(Exception, match=f"the loss is not finite for the pairs {BAD_PAIR.pair_id}"):
        run_variants(2, [variant])
    assert len(metrics_of(variant)) == len(EPOCH) + BATCH


class _InfiniteGradient(torch.autograd.Function):
    """Its input, whose gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradients[0], torch.inf)


def test_so_is_a_batch_whose_gradient_alone_is_not_finite(
    world: World, references: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    true_term, calls = step_module.dpo_term, itertools.count()

    def dpo_term(margin: torch.Tensor) -> torch.Tensor:
        return true_term(_InfiniteGradient.apply(margin) if next(calls) == BATCH else margin)

    monkeypatch.setattr(step_module, "dpo_term", dpo_term)  # the ranks are forked from here
    skipping = variant_of(world, "gradient", ONE_PROCESS, references["sound"], skip_bad_batches=1, **MANY_TOKENS)
    run_variants(1, [skipping])
    assert_left_out(world, skipping, BATCH)

    stopped = variant_of(world, "gradient-stopped", ONE_PROCESS, references["sound"], **MANY_TOKENS)
    pairs = ", ".join(pair.pair_id for pair in EPOCH[BATCH])
    said = rf"gradient norm is (nan|inf); each pair's loss is finite; the batch held the pairs {pairs}; nothing was"
    with pytest.raises(Exception, match=said):
        run_variants(1, [stopped])
    assert len(metrics_of(stopped)) == BATCH
