"""A tiny model, hurtful pairs, and what float64 makes of them: what layouts and interruptions must not change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.float64_reference import Trajectory, trajectory
from support.layouts import Variant, import_models
from support.pairs import every_hurtful_pair
from support.stages import ONE_THREAD, train_request, write_pairs
from support.tiny_model import make_llama, make_model

from irpo_megatron.config import LossConfig, Method, ParallelConfig, PrecisionConfig, TrainingConfig
from irpo_megatron.records import Pair
from irpo_megatron.requests import ReferenceRequest

VOCABULARY = 29  # odd: tensor parallelism pads it
PAIRS = every_hurtful_pair(vocabulary=VOCABULARY)
# Seventeen pairs in batches of four, four times: every fifth step sees one pair, fewer than there are ranks.
TRAINING = TrainingConfig(
    global_batch_size=4,
    epochs=4,
    learning_rate=1e-3,
    warmup_steps=3,
    clip_gradient=1.0,
    weight_decay=0.1,
    shuffle=False,
)
BATCHES = [PAIRS[start : start + 4] for start in range(0, len(PAIRS), 4)] * 4
STEPS = len(BATCHES)
LOSS = LossConfig(alpha=0.7, beta=0.3)
FP32 = PrecisionConfig()

# How pairs become micro-batches.
FEW_TOKENS: dict[str, Any] = {
    "micro_batch_size": None,
    "micro_batch_tokens": 48,
}  # several micro-batches a step, and pairs too long for any
MANY_TOKENS: dict[str, Any] = {"micro_batch_size": None, "micro_batch_tokens": 4096}  # one micro-batch a step
ONE_PAIR: dict[str, Any] = {"micro_batch_size": 1}
TWO_PAIRS: dict[str, Any] = {"micro_batch_size": 2}


@dataclass(frozen=True)
class World:
    """A model and what training makes of it."""

    root: Path
    folder: Path
    checkpoint: Path
    pairs: Path
    method: Method
    expected: Trajectory

    def variant(
        self, name: str, parallel: ParallelConfig, *, precision: PrecisionConfig = FP32, **training: Any
    ) -> Variant:
        """Reference pass, where the method has a reference, and training; `training` changes keys of `TRAINING`."""
        fields: dict[str, Any] = {
            # Not validated again: a test may go where the configuration does not.
            "training": TRAINING.model_copy(update=training),
            "precision": precision,
            "parallel": parallel,
            "launch": ONE_THREAD,
        }
        reference = None
        if self.method == "irpo":
            reference = ReferenceRequest(
                output=self.root / name / "reference",
                iteration=1,
                pair_rows=self.pairs,
                checkpoint=self.checkpoint,
                **fields,
            )
        training_request = train_request(
            self.root / name / "training",
            pairs=self.pairs,
            checkpoint=self.checkpoint,
            reference=reference and reference.output,
            method=self.method,
            loss=LOSS,
            **fields,
        )
        return Variant(reference, training_request)


def make_worlds(root: Path) -> dict[str, World]:
    """`untied`; `tied`, whose output matrix is its embedding; `star`, whose loss has no DPO term."""
    folders = {
        name: make_llama(root / name / "hf", vocab_size=VOCABULARY, eos_token_id=0, tie_word_embeddings=name == "tied")
        for name in ("untied", "tied")
    }
    worlds = _worlds_of(root, folders)
    untied = worlds["untied"]
    star = replace(untied, root=root / "star", method="star", expected=float64(untied.folder, BATCHES, with_dpo=False))
    return {**worlds, "star": star}


def make_family_worlds(root: Path) -> dict[str, World]:
    """`qwen2`, tied, whose query, key and value have biases; `qwen3`, whose heads are normalised.

    What is added to all keys changes attention only by the rotation between them. Where they turn so slowly as at a
    base of 1e6, a key's bias has a gradient of next to nothing, and AdamW makes steps of its rounding.
    """
    folders = {
        family: make_model(root / family / "hf", family, vocab_size=VOCABULARY, eos_token_id=0, rope_theta=1e4)
        for family in ("qwen2", "qwen3")
    }
    return _worlds_of(root, folders)


def _worlds_of(root: Path, folders: dict[str, Path]) -> dict[str, World]:
    """A world of method irpo for each folder."""
    rows = write_pairs(root / "pairs", PAIRS)
    imported = import_models({folder: root / name / "megatron" for name, folder in folders.items()})
    return {
        name: World(
            root=root / name,
            folder=folder,
            checkpoint=checkpoint,
            pairs=rows,
            method="irpo",
            expected=float64(folder, BATCHES),
        )
        for (name, folder), checkpoint in zip(folders.items(), imported, strict=True)
    }


def float64(folder: Path, batches: list[list[Pair]], *, with_dpo: bool = True) -> Trajectory:
    """What `TRAINING` and `LOSS` make of these batches."""
    return trajectory(
        folder,
        batches,
        alpha=LOSS.alpha,
        beta=LOSS.beta,
        learning_rate=TRAINING.learning_rate,
        warmup_steps=TRAINING.warmup_steps,
        clip=TRAINING.clip_gradient,
        weight_decay=TRAINING.weight_decay,
        epsilon=TRAINING.adam_epsilon,
        with_dpo=with_dpo,
    )


def assert_same_steps(
    variant: Variant, metrics: Sequence[dict[str, Any]], expected: Trajectory, *, has_pairs: bool = True
) -> None:
    """The figures of every step."""
    assert len(metrics) == len(expected.steps)
    assert not has_pairs or metrics[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    where = (variant.training.parallel, variant.training.training)
    for ours, theirs in zip(metrics, expected.steps, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5), (where, ours["step"])
        for name in ("dpo", "nll") if has_pairs else ("nll",):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), (where, ours["step"], name)
        for name in ("chosen_log_prob", "gradient_norm", *(["rejected_log_prob"] if has_pairs else [])):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (where, ours["step"], name)


def assert_same_weights(variant: Variant, weights: dict[str, torch.Tensor], expected: Trajectory) -> None:
    """Every number of the model after the last step."""
    assert weights.keys() == expected.weights.keys()
    for name, theirs in expected.weights.items():
        difference = (weights[name].double() - theirs).abs().max().item()
        assert difference <= 1e-4, (variant.training.parallel, variant.training.training, name)


def last_checkpoint(variant: Variant, *, steps: int = STEPS) -> Path:
    """Where training leaves its result."""
    return variant.training.output / "checkpoints" / f"step-{steps:06d}"
