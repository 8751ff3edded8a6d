"""Reference pass and training on one GPU: NCCL, bf16, recomputation, shared prompts, FP8."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from support.float64_reference import trajectory
from support.pairs import hurtful_pairs
from support.stages import import_model, run_reference, run_training, train_request, write_pairs
from support.tiny_model import make_llama

from irpo_megatron.config import Fp8Config, LossConfig, ParallelConfig, PrecisionConfig, TrainingConfig

pytestmark = pytest.mark.gpu

VOCABULARY = 29
PAIRS_A_BATCH = 4
STEPS = 6
LEARNING_RATE = 1e-3
LOSS = LossConfig(alpha=0.7, beta=0.3)
BF16 = PrecisionConfig(dtype="bf16")

Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class World:
    """A tiny model whose widths are whole FP8 blocks, pairs, and what float64 makes of them."""

    root: Path
    checkpoint: Path
    pairs: Path
    expected: list[dict[str, float]]

    def train(self, name: str, precision: PrecisionConfig, **training: Any) -> Metrics:
        """Reference pass and training on the first GPU; the guard at step 0 is on, as ever."""
        fields: dict[str, Any] = {
            "global_batch_size": PAIRS_A_BATCH,
            "micro_batch_tokens": 64,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 3,
            "weight_decay": 0.1,
            "shuffle": False,
        }
        inputs: dict[str, Any] = {
            "pairs": self.pairs,
            "checkpoint": self.checkpoint,
            "training": TrainingConfig(**fields | training),
            "parallel": ParallelConfig(),
            "precision": precision,
        }
        reference = run_reference(self.root / name / "reference", **inputs)
        return run_training(train_request(self.root / name / "training", reference=reference, loss=LOSS, **inputs))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("gpu")
    folder = make_llama(root / "hf", vocab_size=VOCABULARY, scale=2.0, hidden_size=64, intermediate_size=128)
    pairs = hurtful_pairs(PAIRS_A_BATCH * STEPS - 2, vocabulary=VOCABULARY)
    batches = [pairs[start : start + PAIRS_A_BATCH] for start in range(0, len(pairs), PAIRS_A_BATCH)]
    expected = trajectory(
        folder,
        batches,
        alpha=LOSS.alpha,
        beta=LOSS.beta,
        learning_rate=LEARNING_RATE,
        warmup_steps=3,
        clip=1.0,
        weight_decay=0.1,
    ).steps
    return World(
        root=root,
        checkpoint=import_model(folder, root / "megatron"),
        pairs=write_pairs(root / "pairs", pairs),
        expected=expected,
    )


@pytest.fixture(scope="module")
def in_bf16(world: World) -> Metrics:
    return world.train("bf16", BF16)


def assert_near(measured: Metrics, expected: Any, *, share: float) -> None:
    """Losses and gradient norms agree to that share, at every step."""
    for step, (ours, theirs) in enumerate(zip(measured, expected, strict=True)):
        for name in ("loss", "dpo", "nll", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=share), (step, name)


@pytest.mark.parametrize("shared_prompt", [False, True])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_fp32_follows_the_float64_trajectory(
    world: World, shared_prompt: bool, recompute: Literal["none", "full"]
) -> None:
    metrics = world.train(
        f"fp32-{shared_prompt}-{recompute}", PrecisionConfig(), shared_prompt=shared_prompt, recompute=recompute
    )
    assert metrics[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert_near(metrics, world.expected, share=1e-4)


def test_bf16_stays_near_it(world: World, in_bf16: Metrics) -> None:
    assert_near(in_bf16, world.expected, share=0.03)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_computed_again_is_the_same(
    world: World, in_bf16: Metrics, recompute: Literal["selective", "full"]
) -> None:
    """Up to the order in which the attention of a GPU adds up its gradients."""
    assert_near(world.train(recompute, BF16, recompute=recompute), in_bf16, share=0.01)


def test_micro_batches_of_pairs_are_no_other_batch(world: World, in_bf16: Metrics) -> None:
    assert_near(world.train("padded", BF16, micro_batch_size=2), in_bf16, share=0.02)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_fp8_stays_near_bf16(
    world: World, in_bf16: Metrics, recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"]
) -> None:
    from irpo_megatron.engine.precision import check_precision
    from irpo_megatron.errors import UserError

    precision = PrecisionConfig(dtype="bf16", fp8=Fp8Config(recipe=recipe))
    try:
        check_precision(precision)
    except UserError as error:
        pytest.skip(str(error))
    assert_near(world.train(recipe, precision), in_bf16, share=0.15)
