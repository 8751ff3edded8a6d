"""FP8 copies by the real modelopt, which computes on a CPU too, against sums that do without it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.stages import ONE_THREAD, run_request
from support.tiny_model import make_model
from transformers import AutoModelForCausalLM

from irpo_megatron.artifacts import partial_directory, read_json
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.quantisation import calibration_rows, run, write_copy
from irpo_megatron.model_folder import open_model_folder
from irpo_megatron.records import Problem, read_rows, write_rows
from irpo_megatron.requests import QuantiseRequest
from irpo_megatron.tokenizer import Tokenizer

needs_modelopt = pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="needs modelopt")
LARGEST = 448
"""Of E4M3: three bits behind the point, exponents from -6 to 8."""
FAMILIES = ("llama", "qwen2")


def request_for(output: Path, problems: Path, models: dict[str, Path], **settings: Any) -> QuantiseRequest:
    engine = {"fp8_weights": settings}
    return QuantiseRequest(
        output=output,
        iteration=1,
        seed=3,
        task="arithmetic",
        generation=GenerationConfig.model_validate({"backend": "tensorrt_llm", "tensorrt_llm": engine}),
        launch=ONE_THREAD,
        problems=problems,
        models=models,
    )


@pytest.fixture(scope="module")
def problems_with_solutions(problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every other problem the solution is known."""
    folder = tmp_path_factory.mktemp("solved")
    rows = read_rows(problems / "train.parquet", Problem)
    solved = [
        Problem(id=row.id, question=row.question, answer=row.answer, solution="1+2=3;H" if number % 2 else None)
        for number, row in enumerate(rows)
    ]
    write_rows(folder / "train.parquet", solved, Problem)
    return folder


@pytest.fixture(scope="module")
def models(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama, and a Qwen 2: biases, and no output matrix of its own. Both in fp32."""
    qwen = make_model(tmp_path_factory.mktemp("qwen2"), "qwen2", num_hidden_layers=2)
    shutil.copyfile(digits_folder / "tokenizer.json", qwen / "tokenizer.json")
    return {"llama": digits_folder, "qwen2": qwen}


@pytest.fixture(scope="module")
def copies(models: dict[str, Path], problems_with_solutions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage's process writes where a killed attempt finished one folder and began another."""
    output = tmp_path_factory.mktemp("copies")
    (output / "finished").mkdir()
    begun = partial_directory(output / "llama")
    begun.mkdir()
    (begun / "model.safetensors").write_bytes(b"cut off")
    request = request_for(output, problems_with_solutions, models | {"finished": models["llama"]})
    run_request("irpo_megatron.generation.quantisation", request)
    return output


@needs_modelopt
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_rounded_to_e4m3(copies: Path, models: dict[str, Path], family: str) -> None:
    """By half a step of E4M3, and a sixteenth of that more: modelopt divides by the scale in bf16."""
    source, copy = (load_file(folder / "model.safetensors") for folder in (models[family], copies / family))
    matrices = [name for name in source if ".layers." in name and source[name].ndim == 2]
    assert len(matrices) == 2 * 7
    for name in matrices:
        weight = source[name].bfloat16().double()
        scale = copy[f"{name}_scale"].double()
        assert float(scale) == pytest.approx(float(weight.abs().max()) / LARGEST, rel=1e-6)
        scaled = weight / scale
        step = torch.exp2(scaled.abs().log2().floor().clamp(min=-6) - 3)
        assert copy[name].dtype == torch.float8_e4m3fn
        assert float(((copy[name].double() - scaled).abs() / step).max()) < 0.5 * (1 + 1 / 16) + 1e-6


@needs_modelopt
@pytest.mark.parametrize("family", FAMILIES)
def test_all_else_is_the_source_in_bf16(copies: Path, models: dict[str, Path], family: str) -> None:
    source, copy = (load_file(folder / "model.safetensors") for folder in (models[family], copies / family))
    matrices = {name for name in source if ".layers." in name and source[name].ndim == 2}
    scales = {name.replace("weight", scale) for name in matrices for scale in ("weight_scale", "input_scale")}
    assert set(copy) == set(source) | scales
    assert "lm_head.weight" in source or family == "qwen2"
    for name in set(source) - matrices:
        assert copy[name].dtype == torch.bfloat16
        assert torch.equal(copy[name], source[name].bfloat16())


@needs_modelopt
@pytest.mark.parametrize("family", FAMILIES)
def test_scales_of_inputs_come_from_every_problem_with_its_solution(
    copies: Path, models: dict[str, Path], problems_with_solutions: Path, family: str
) -> None:
    copy, largest = load_file(copies / family / "model.safetensors"), dict[str, float]()
    model = AutoModelForCausalLM.from_pretrained(models[family], dtype=torch.bfloat16)

    def watch(name: str) -> Callable[..., None]:
        def seen(_module: object, inputs: tuple[torch.Tensor], _output: object) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return seen

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_hook(watch(name))
    encode = Tokenizer(models[family]).encode_text
    with torch.no_grad():
        for problem in read_rows(problems_with_solutions / "train.parquet", Problem):
            solution = "" if problem.solution is None else problem.solution
            model(torch.tensor([encode(f"{problem.question}:{solution}")]))
    assert len(largest) == 14
    for name, value in largest.items():
        assert float(copy[f"{name}.input_scale"]) == pytest.approx(value / LARGEST, rel=0.005), name


@needs_modelopt
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_is_told_by_hf_quant_config_and_finds_the_rest_unchanged(
    copies: Path, models: dict[str, Path], family: str
) -> None:
    """The keys are those that TensorRT-LLM reads."""
    source, copy = models[family], copies / family
    quantization = read_json(copy / "hf_quant_config.json")["quantization"]
    assert (quantization["quant_algo"], quantization["kv_cache_quant_algo"]) == ("FP8", None)
    assert "lm_head" in quantization["exclude_modules"]
    config = read_json(copy / "config.json")
    assert config.pop("quantization_config")["quant_algo"] == "FP8"
    assert config == read_json(source / "config.json") | {"dtype": "bfloat16"}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (copy / name).read_bytes() == (source / name).read_bytes()
    assert Tokenizer(copy).eos_ids == Tokenizer(source).eos_ids


@needs_modelopt
def test_what_a_killed_attempt_finished_is_kept(copies: Path) -> None:
    assert not list((copies / "finished").iterdir())
    assert not list(copies.glob("*.partial"))
    assert read_json(copies / "progress.json") == {"done": 24, "total": 24, "unit": "prompts"}


def test_problems_are_drawn_by_the_seed_alone(problems: Path, models: dict[str, Path], tmp_path: Path) -> None:
    request = request_for(tmp_path, problems, models, calibration_prompts=5)
    rows = [calibration_rows(request, open_model_folder(models[family])) for family in FAMILIES]
    assert rows[0] == rows[1]
    assert len({tuple(row) for row in rows[0]}) == 5
    other = request.model_copy(update={"seed": 4})
    assert calibration_rows(other, open_model_folder(models["llama"])) != rows[0]


def test_a_long_solution_is_cut_at_the_context(models: dict[str, Path], tmp_path: Path) -> None:
    problem = Problem(id="a", question="1+2", answer="3", solution="1" * 1000)
    write_rows(tmp_path / "train.parquet", [problem], Problem)
    source = open_model_folder(models["llama"])
    (row,) = calibration_rows(request_for(tmp_path, tmp_path, models), source)
    assert len(row) == source.context == 128


def test_room_is_asked_for_before_anything_is_loaded(
    models: dict[str, Path], problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte for a number of a matrix, two for any other."""
    source = load_file(models["llama"] / "model.safetensors")
    size = sum(t.numel() * (1 if ".layers." in name and t.ndim == 2 else 2) for name, t in source.items())
    usage = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"are to be written to .*/llama\.partial"):
        run(request_for(tmp_path, problems, {"llama": models["llama"]}))


def test_a_copy_in_other_numbers_is_refused(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a modelopt that says FP8 and passes over some matrices."""

    def quantise(source: Path, output: Path, *_: object, **__: object) -> None:
        shutil.copytree(source, output, dirs_exist_ok=True)
        config = read_json(source / "config.json") | {"quantization_config": {}}
        (output / "config.json").write_text(json.dumps(config))
        (output / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')

    monkeypatch.setattr("irpo_megatron.generation.quantisation.quantise", quantise)
    with pytest.raises(RuntimeError, match=r"not in FP8 with both scales: model\.layers\.0\.mlp\.down_proj\."):
        write_copy(open_model_folder(models["llama"]), tmp_path, [[1]], advance=lambda _: None)
