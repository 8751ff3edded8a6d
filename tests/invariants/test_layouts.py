"""One trajectory, whatever the layout: against an independent float64 implementation of equation 1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.float64_reference import trajectory
from support.pairs import hurtful_pairs
from support.stages import import_model, run_reference, run_training, train_request, write_pairs
from support.tiny_model import make_llama

from irpo_megatron.config import LossConfig, ParallelConfig, TrainingConfig
from irpo_megatron.records import Pair

VOCABULARY = 29  # odd: tensor parallelism pads it
# 22 pairs in batches of 4: the sixth step sees only two, fewer than the ranks' micro-batches hold.
TRAINING = TrainingConfig(
    global_batch_size=4,
    micro_batch_size=1,
    learning_rate=1e-3,
    warmup_steps=3,
    clip_gradient=1.0,
    weight_decay=0.1,
    shuffle=False,
)
LOSS = LossConfig(alpha=0.7, beta=0.3)
STEPS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("layouts")
    folder = make_llama(root / "hf", vocab_size=VOCABULARY)
    pairs = hurtful_pairs(22, vocabulary=VOCABULARY)
    batches: list[list[Pair]] = [pairs[start : start + 4] for start in range(0, len(pairs), 4)]
    expected = trajectory(
        folder, batches, alpha=0.7, beta=0.3, learning_rate=1e-3, warmup_steps=3, clip=1.0, weight_decay=0.1
    )
    return {
        "root": root,
        "checkpoint": import_model(folder, root / "megatron"),
        "pairs": write_pairs(root / "pairs", pairs),
        "expected": expected,
    }


@pytest.mark.parametrize(
    ("tensor", "pipeline", "data", "micro"),
    [(1, 1, 1, 1), (1, 1, 1, 4), (2, 1, 1, 2), (1, 2, 1, 1), (2, 2, 1, 2), (1, 1, 2, 1), (1, 1, 2, 2)],
)
def test_the_trajectory_is_that_of_equation_1(
    world: dict[str, Any], tensor: int, pipeline: int, data: int, micro: int
) -> None:
    parallel = ParallelConfig(tensor=tensor, pipeline=pipeline, data=data)
    training = TRAINING.model_copy(update={"micro_batch_size": micro})
    root: Path = world["root"] / f"tp{tensor}-pp{pipeline}-dp{data}-micro{micro}"
    reference = run_reference(
        root / "reference",
        pairs=world["pairs"],
        checkpoint=world["checkpoint"],
        parallel=parallel,
        training=training,
    )
    metrics = run_training(
        train_request(
            root / "training",
            pairs=world["pairs"],
            checkpoint=world["checkpoint"],
            reference=reference,
            loss=LOSS,
            training=training,
            parallel=parallel,
        )
    )
    assert len(metrics) == STEPS
    assert metrics[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    for measured, expected in zip(metrics, world["expected"], strict=True):
        for name in ("loss", "dpo", "nll"):
            assert measured[name] == pytest.approx(expected[name], abs=1e-5), (measured["step"], name)
        for name in ("chosen_log_prob", "rejected_log_prob", "gradient_norm"):
            assert measured[name] == pytest.approx(expected[name], rel=1e-4), (measured["step"], name)
