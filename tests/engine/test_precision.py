"""Precision as Megatron-Core's own fields, and what a machine must have for it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any, Literal, get_args

import pytest
import torch
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from irpo_megatron.config import Fp8Config, PrecisionConfig
from irpo_megatron.engine.precision import (
    check_precision,
    numerics_key,
    optimizer_fields,
    step_zero_tolerance,
    transformer_fields,
    uses_transformer_engine,
)
from irpo_megatron.errors import UserError

Recipe = Literal["delayed", "tensorwise", "blockwise", "mxfp8"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
FP32 = PrecisionConfig()
BF16 = PrecisionConfig(dtype="bf16")


def fp8(recipe: Recipe, **changes: Any) -> PrecisionConfig:
    return PrecisionConfig(dtype="bf16", fp8=Fp8Config(recipe=recipe, **changes))


EVERY = {"fp32": FP32, "bf16": BF16} | {recipe: fp8(recipe) for recipe in RECIPES}
every_precision = pytest.mark.parametrize("precision", EVERY.values(), ids=EVERY)


def transformer(precision: PrecisionConfig, **changes: Any) -> TransformerConfig:
    return TransformerConfig(
        num_layers=4, hidden_size=32, num_attention_heads=4, **(transformer_fields(precision) | changes)
    )


# The fields


@every_precision
def test_megatron_core_has_every_field_and_accepts_the_values(precision: PrecisionConfig) -> None:
    made = {
        TransformerConfig: (transformer(precision), transformer_fields(precision)),
        OptimizerConfig: (OptimizerConfig(**optimizer_fields(precision)), optimizer_fields(precision)),
    }
    for class_, (config, fields) in made.items():
        assert fields.keys() <= {field.name for field in dataclasses.fields(class_)}
        assert {name: getattr(config, name) for name in fields} == fields


def test_fp32_is_what_megatron_core_does_by_itself() -> None:
    by_itself = TransformerConfig(num_layers=4, hidden_size=32, num_attention_heads=4, pipeline_dtype=torch.float32)
    for field in dataclasses.fields(TransformerConfig):
        if not field.name.endswith("init_method"):  # functions, made anew each time
            assert getattr(transformer(FP32), field.name) == getattr(by_itself, field.name), field.name
    assert OptimizerConfig(**optimizer_fields(FP32)) == OptimizerConfig()


def test_bf16_keeps_its_sums_in_fp32() -> None:
    config = transformer(BF16)
    assert (config.bf16, config.fp16, config.fp8, config.enable_autocast) == (True, False, None, False)
    assert config.params_dtype == config.pipeline_dtype == config.autocast_dtype == torch.bfloat16
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    optimizer = OptimizerConfig(**optimizer_fields(BF16))
    assert (optimizer.bf16, optimizer.params_dtype, optimizer.fp8_recipe) == (True, torch.bfloat16, None)
    assert optimizer.main_params_dtype == optimizer.main_grads_dtype == torch.float32
    assert optimizer.exp_avg_dtype == optimizer.exp_avg_sq_dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (
            fp8("delayed", amax_history=16, margin=2),
            {
                "fp8": "hybrid",
                "fp8_recipe": "delayed",
                "fp8_margin": 2,
                "fp8_amax_history_len": 16,
                "fp8_amax_compute_algo": "max",
                "tp_only_amax_red": True,
                "fp8_param": False,
                "first_last_layers_bf16": False,
            },
        ),
        (
            fp8("tensorwise", first_layers_bf16=1, last_layers_bf16=2),
            {
                "fp8": "hybrid",
                "fp8_recipe": "tensorwise",
                "first_last_layers_bf16": True,
                "num_layers_at_start_in_bf16": 1,
                "num_layers_at_end_in_bf16": 2,
            },
        ),
        (
            fp8("blockwise", format="e4m3", last_layers_bf16=1),
            {
                "fp8": "e4m3",
                "fp8_recipe": "blockwise",
                "first_last_layers_bf16": True,
                "num_layers_at_start_in_bf16": 0,
                "num_layers_at_end_in_bf16": 1,
            },
        ),
        (fp8("mxfp8"), {"fp8": "hybrid", "fp8_recipe": "mxfp8", "fp8_param": False}),
    ],
    ids=RECIPES,
)
def test_a_recipe_in_megatron_cores_words(precision: PrecisionConfig, expected: dict[str, Any]) -> None:
    config = transformer(precision)
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.bf16, config.params_dtype) == (True, torch.bfloat16)
    assert not config.fp8_dot_product_attention
    assert not config.fp8_multi_head_attention
    assert optimizer_fields(precision)["fp8_recipe"] == expected["fp8_recipe"]


def test_megatron_core_refuses_what_the_rules_refuse() -> None:
    """The rules of `config_rules` and `preflight` stand for these."""
    with pytest.raises(ValueError, match="Delayed scaling does not support first / last layer in BF16"):
        transformer(fp8("delayed", first_layers_bf16=1))
    with pytest.raises(ValueError, match="between 0 and number of layers per pipeline stage"):
        transformer(fp8("tensorwise", first_layers_bf16=3), pipeline_model_parallel_size=2)


CLASSES = {
    "delayed": "DelayedScaling",
    "tensorwise": "Float8CurrentScaling",
    "blockwise": "Float8BlockScaling",
    "mxfp8": "MXFP8BlockScaling",
}
PROBE = """
import json, sys
import transformer_engine.common.recipe as recipes
names = json.loads(sys.argv[1])
delayed = recipes.DelayedScaling()
print(json.dumps({
    "known": [name for name in names if issubclass(getattr(recipes, name, type), recipes.Recipe)],
    "formats": [name for name in ("HYBRID", "E4M3") if name in recipes.Format.__members__],
    "delayed": [delayed.margin, delayed.amax_history_len, delayed.amax_compute_algo],
}))
"""


@pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is None, reason="needs Transformer Engine")
def test_transformer_engine_has_the_recipes_and_these_defaults() -> None:
    """In a process of its own, as a build of Transformer Engine imports it: that works without CUDA."""
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, json.dumps([*CLASSES.values()])],
        env={**os.environ, "NVTE_PROJECT_BUILDING": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(finished.stdout)
    assert found["known"] == [*CLASSES.values()]
    assert found["formats"] == ["HYBRID", "E4M3"]
    fields, default = transformer_fields(fp8("delayed")), Fp8Config(recipe="delayed")
    assert found["delayed"] == [default.margin, default.amax_history, fields["fp8_amax_compute_algo"]]


# The tolerance at step 0


def test_fp32_has_a_fixed_tolerance() -> None:
    assert step_zero_tolerance(FP32) == 1e-5
    assert step_zero_tolerance(FP32, beta=1.0, pairs=1) == pytest.approx(2.5e-4)  # 5 deviations of 1e-4, halved


def test_rounding_grows_with_beta_and_shrinks_with_the_batch() -> None:
    """The mean over a batch of pairs, each with the standard deviation 0.5 nats x beta, halved by -log sigmoid."""
    assert step_zero_tolerance(BF16) == pytest.approx(5 * 0.1 * 0.5 / 2 / 4)
    assert step_zero_tolerance(BF16, beta=0.2) == pytest.approx(2 * step_zero_tolerance(BF16))
    assert step_zero_tolerance(BF16, pairs=64) == pytest.approx(step_zero_tolerance(BF16) / 2)


def test_fewer_bits_get_more_tolerance_and_blocks_less_than_whole_tensors() -> None:
    tolerances = [step_zero_tolerance(precision) for precision in (FP32, BF16, fp8("blockwise"), fp8("tensorwise"))]
    assert tolerances == sorted(tolerances)
    assert tolerances[-1] < 0.2, "the DPO term is below ln 2 = 0.69: more would let anything pass"
    assert step_zero_tolerance(fp8("mxfp8")) == step_zero_tolerance(fp8("blockwise"))
    assert step_zero_tolerance(fp8("delayed")) == step_zero_tolerance(fp8("tensorwise"))


# What a machine must have


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    capability: tuple[int, int] | None = (9, 0),
    cuda: str = "12.9",
    transformer_engine: str | None = "2.11.0",
) -> None:
    """Let this be a machine with such a GPU (none: no CUDA) and such a Transformer Engine (none: not installed)."""

    def version(name: str) -> str:
        if transformer_engine is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return transformer_engine

    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
def test_fp32_and_bf16_run_anywhere(precision: PrecisionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    check_precision(precision)
    machine(monkeypatch, capability=None, transformer_engine=None)
    check_precision(precision)


@pytest.mark.parametrize(
    ("recipe", "capability", "cuda"),
    [
        ("delayed", (8, 9), "12.4"),
        ("tensorwise", (8, 9), "12.4"),
        ("tensorwise", (9, 0), "12.1"),
        ("tensorwise", (12, 0), "13.0"),
        ("blockwise", (9, 0), "12.9"),
        ("blockwise", (9, 0), "12.10"),  # a version, not a decimal number
        ("blockwise", (10, 0), "13.0"),
        ("mxfp8", (10, 0), "12.8"),
        ("mxfp8", (10, 3), "13.0"),
    ],
)
def test_machines_that_can(
    recipe: Recipe, capability: tuple[int, int], cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, capability=capability, cuda=cuda)
    check_precision(fp8(recipe))


@pytest.mark.parametrize(
    ("recipe", "lacking", "seen", "rule", "remedy"),
    [
        ("tensorwise", {"capability": None}, "no CUDA device", "needs CUDA", "precision.fp8=null"),
        (
            "tensorwise",
            {"transformer_engine": None},
            "Transformer Engine is not installed",
            "Transformer Engine's",
            "irpo-megatron[transformer-engine]",
        ),
        ("tensorwise", {"transformer_engine": "2.12.0"}, "2.12.0 is installed", "2.9 up to", "pip install"),
        ("delayed", {"capability": (8, 6)}, "a GPU has compute capability 8.6", "8.9 or higher", "precision.fp8=null"),
        ("tensorwise", {"capability": (8, 0)}, "compute capability 8.0", "8.9 or higher", "precision.fp8=null"),
        ("blockwise", {"capability": (8, 9)}, "capability 8.9", "9.0 or higher", "this GPU can do delayed, tensorwise"),
        (
            "mxfp8",
            {"capability": (9, 0)},
            "capability 9.0",
            "10.0 or higher",
            "this GPU can do delayed, tensorwise, blockwise",
        ),
        (
            "mxfp8",
            {"capability": (12, 0)},
            "capability 12.0",
            "10.0 or higher, below 12.0",
            "this GPU can do delayed, tensorwise, blockwise",
        ),
        ("blockwise", {"cuda": "12.8"}, "torch is built with CUDA 12.8", "needs CUDA 12.9", "another recipe"),
        ("tensorwise", {"cuda": "11.8"}, "torch is built with CUDA 11.8", "needs CUDA 12.1", "newer CUDA"),
    ],
)
def test_machines_that_cannot(
    recipe: Recipe, lacking: dict[str, Any], seen: str, rule: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **lacking)
    with pytest.raises(UserError) as caught:
        check_precision(fp8(recipe))
    assert seen in caught.value.seen
    assert rule in caught.value.rule
    assert remedy in caught.value.remedy


def test_transformer_engine_is_used_in_bf16_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses_transformer_engine(BF16)
    machine(monkeypatch)
    assert uses_transformer_engine(BF16)
    assert uses_transformer_engine(fp8("tensorwise"))
    assert not uses_transformer_engine(FP32)
    machine(monkeypatch, transformer_engine=None)
    assert not uses_transformer_engine(BF16)
    machine(monkeypatch, capability=None)
    assert not uses_transformer_engine(BF16)


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
def test_another_transformer_engine_is_not_quietly_left_unused(
    precision: PrecisionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32, too: Megatron-Core takes its optimizer from there."""
    machine(monkeypatch, transformer_engine="2.13.0")
    with pytest.raises(UserError, match=r"Transformer Engine 2\.13\.0 is installed"):
        uses_transformer_engine(precision)


# The key of stored log-probs


def test_different_numerics_have_different_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [numerics_key(precision) for precision in EVERY.values()]
    machine(monkeypatch)
    keys += [numerics_key(precision) for precision in EVERY.values()]
    machine(monkeypatch, transformer_engine=None)
    keys.append(numerics_key(BF16))
    texts = [json.dumps(key, sort_keys=True) for key in keys]
    assert len(set(texts)) == len(texts)
