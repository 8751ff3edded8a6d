"""Training in bf16: near the fp32 trajectory at any layout, to be resumed, exported and gone on from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.layouts import Variant, final_weights, metrics_of, run_alone, run_variants
from support.stages import ONE_THREAD
from support.worlds import FEW_TOKENS, TWO_PAIRS, World, last_checkpoint

from irpo_megatron.artifacts import read_json
from irpo_megatron.config import ConversionConfig, ParallelConfig, PrecisionConfig
from irpo_megatron.requests import ExportRequest

BF16 = PrecisionConfig(dtype="bf16")
EPOCHS = 2
STEPS = 10


def in_bf16(world: World, name: str, parallel: ParallelConfig, **training: Any) -> Variant:
    return world.variant(f"bf16-{name}", parallel, precision=BF16, epochs=EPOCHS, **training)


def assert_near(variant: Variant, world: World) -> None:
    """bf16 has 8 bits, so that a log-prob of one token is off by about 0.01; losses are means over many.

    The tied model is less good-natured: the embedding of its padding token, which transformers begins at 0, is still so
    short at step 4 that the gradient through its norm is 20 times that of other steps, and all noise with it.
    """
    within, share = (0.05, 0.3) if world.folder.parent.name == "tied" else (0.01, 0.05)
    metrics = metrics_of(variant)
    assert len(metrics) == STEPS
    for ours, theirs in zip(metrics, world.expected.steps, strict=False):
        for name in ("loss", "dpo", "nll"):
            assert ours[name] == pytest.approx(theirs[name], abs=within), (ours["step"], name)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=share), ours["step"]


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(),
        ParallelConfig(tensor=2, sequence=True),
        ParallelConfig(pipeline=2, virtual_pipeline=2),
        ParallelConfig(context=2),
        ParallelConfig(data=2),
    ],
    ids=lambda parallel: "-".join(parallel.model_dump(exclude_defaults=True)) or "one",
)
def test_losses_stay_near_those_of_fp32(worlds: dict[str, World], parallel: ParallelConfig) -> None:
    name = "-".join(parallel.model_dump(exclude_defaults=True))
    trained = [
        (world, in_bf16(world, f"{name}-{number}", parallel, **training))
        for number, (world, training) in enumerate(
            [(worlds["untied"], FEW_TOKENS), (worlds["untied"], TWO_PAIRS), (worlds["tied"], FEW_TOKENS)]
        )
    ]
    run_variants(parallel.world_size, [variant for _, variant in trained])
    for world, variant in trained:
        assert_near(variant, world)


def test_it_is_resumed_to_the_bit(worlds: dict[str, World]) -> None:
    """What is saved are the fp32 main weights, not the rounded ones."""
    world, parallel = worlds["untied"], ParallelConfig(data=2)
    undisturbed = in_bf16(world, "undisturbed", parallel, **FEW_TOKENS)
    stopped = in_bf16(world, "stopped", parallel, **FEW_TOKENS)
    run_variants(2, [undisturbed, replace(stopped, stop_after=4), replace(stopped, reference=None)])
    theirs, ours = final_weights([last_checkpoint(variant, steps=STEPS) for variant in (undisturbed, stopped)])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    elsewhere = in_bf16(world, "elsewhere", ParallelConfig(tensor=2, sequence=True), **FEW_TOKENS)
    run_variants(2, [replace(elsewhere, stop_after=4)])
    elsewhere = replace(elsewhere, training=elsewhere.training.model_copy(update={"parallel": parallel}))
    run_variants(2, [replace(elsewhere, reference=None)])
    assert_near(elsewhere, world)


def test_it_is_exported_and_gone_on_from(worlds: dict[str, World], tmp_path: Path) -> None:
    world = worlds["untied"]
    first = in_bf16(world, "first", ParallelConfig(), **FEW_TOKENS)
    run_variants(1, [first])
    checkpoint = last_checkpoint(first, steps=STEPS)

    # The stage itself holds the folder's logits against the checkpoint's.
    request = ExportRequest(
        output=tmp_path / "hf",
        iteration=1,
        launch=ONE_THREAD,
        conversion=ConversionConfig(),
        checkpoints={".": checkpoint},
        model_folder=world.folder,
    )
    run_alone("irpo_megatron.conversion.export_stage", [request])
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = read_json(tmp_path / "hf" / "config.json")
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    (weights,) = final_weights([checkpoint])
    assert all(torch.equal(tensors[name].float(), weights[name]) for name in weights)

    second = in_bf16(replace(world, checkpoint=checkpoint), "second", ParallelConfig(data=2), **FEW_TOKENS)
    run_variants(2, [second])
    metrics = metrics_of(second)
    assert metrics[0]["dpo"] == pytest.approx(math.log(2), abs=0.01)
    assert metrics[0]["nll"] < metrics_of(first)[0]["nll"] - 0.5, "it goes on from what was learned"
