"""What the machine and the model must have for FP8 is said before anything starts, without torch."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_model import make_llama

from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.config import Config, DataConfig, Fp8Config, ModelConfig, ParallelConfig, PrecisionConfig
from irpo_megatron.config_generation import GenerationConfig, TensorRTLLMConfig
from irpo_megatron.errors import UserError
from irpo_megatron.layout_rules import check_fp8_shape
from irpo_megatron.model_config import with_defaults
from irpo_megatron.preflight import check_installation, check_model

# Llama-2-7B.
MODEL: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def config(fp8: Fp8Config | None, **parallel: Any) -> Config:
    return Config(
        name="run",
        task="gsm8k",
        model=ModelConfig(path=Path("model")),
        data=DataConfig(train="train.jsonl", test="test.jsonl"),
        precision=PrecisionConfig(dtype="bf16", fp8=fp8),
        parallel=ParallelConfig(**parallel),
    )


def test_bf16_asks_for_nothing_more() -> None:
    check_installation(config(None))


def test_fp8_without_transformer_engine() -> None:
    with pytest.raises(UserError) as caught:
        check_installation(config(Fp8Config(recipe="blockwise")))
    assert caught.value.seen == "precision.fp8.recipe = blockwise, and Transformer Engine is not installed"


def test_fp8_with_another_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.20.2")
    with pytest.raises(UserError, match=r"Transformer Engine 2\.20\.2 is installed"):
        check_installation(config(Fp8Config(recipe="blockwise")))


def test_an_apex_that_is_not_nvidias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apex").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="not NVIDIA's"):
        check_installation(config(None))


def test_the_checks_do_without_torch() -> None:
    """They run in the process of the command, which stays light."""
    code = "import sys, irpo_megatron.preflight; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_a_model_whose_widths_are_whole_blocks(recipe: Any, tensor: int) -> None:
    check_fp8_shape(config(Fp8Config(recipe=recipe), tensor=tensor), MODEL)


@pytest.mark.parametrize(
    ("recipe", "tensor", "changes", "seen"),
    [
        ("tensorwise", 1, {"hidden_size": 40, "head_dim": 16}, "hidden_size = 40"),
        ("mxfp8", 1, {"hidden_size": 48, "head_dim": 16}, "hidden_size = 48"),
        ("mxfp8", 16, {}, "intermediate_size / parallel.tensor = 688"),
        ("tensorwise", 8, {"intermediate_size": 11000}, "intermediate_size / parallel.tensor = 1375"),
        (
            "delayed",
            1,
            {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8},
            "num_attention_heads x head size / parallel.tensor = 24",
        ),
        (
            "delayed",
            2,
            {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4},
            "(num_attention_heads + 2 x num_key_value_heads) x head size / parallel.tensor = 24",
        ),
    ],
)
def test_a_width_that_is_no_whole_number_of_blocks(
    recipe: Any, tensor: int, changes: dict[str, Any], seen: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_fp8_shape(config(Fp8Config(recipe=recipe), tensor=tensor), MODEL | changes)
    assert seen in caught.value.seen
    assert "precision.fp8=null" in caught.value.remedy


def test_what_config_json_leaves_unsaid_is_what_the_family_takes() -> None:
    said = {key: value for key, value in MODEL.items() if key != "num_key_value_heads"}
    fp8 = Fp8Config(recipe="tensorwise")
    mistral = with_defaults(said | {"model_type": "mistral", "hidden_size": 512, "intermediate_size": 2048})
    with pytest.raises(UserError, match=r"x head size / parallel\.tensor = 24\n"):  # (32 + 2 x 8) x 16 / 32
        check_fp8_shape(config(fp8, tensor=32), mistral)
    # Qwen3's heads are 128 wide, whether or not their number divides the hidden size.
    check_fp8_shape(config(fp8), with_defaults(said | {"model_type": "qwen3", "hidden_size": 528}))


def test_more_layers_in_bf16_than_a_stage_has() -> None:
    check_fp8_shape(config(Fp8Config(recipe="tensorwise", last_layers_bf16=8), pipeline=4), MODEL)
    with pytest.raises(UserError) as caught:
        check_fp8_shape(config(Fp8Config(recipe="tensorwise", last_layers_bf16=9), pipeline=4), MODEL)
    assert caught.value.seen == "precision.fp8 keeps 9 layers at one end in bf16, and a pipeline stage has 8"


def test_without_fp8_any_shape_will_do() -> None:
    check_fp8_shape(config(None), {"hidden_size": 7})


def test_rotary_embeddings_that_the_engine_would_not_read(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    settings = read_json(folder / "config.json")
    settings.pop("rope_theta", None)
    write_json(folder / "config.json", {**settings, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    run = config(None).model_copy(
        update={"generation": GenerationConfig(backend="tensorrt_llm", tensorrt_llm=TensorRTLLMConfig())}
    )
    with pytest.raises(UserError) as caught:
        check_model(run, tmp_path / "problems", folder)
    assert caught.value.seen == f"{folder / 'config.json'} says it in rope_parameters alone, and has no rope_theta"
    assert caught.value.remedy == 'add to that file: "rope_theta": 500000.0'
