"""FP8 copies of models for the engine: an optional stage after each conversion, and before candidates are judged.

    python -m irpo_megatron.process irpo_megatron.generation.quantisation REQUEST.json

Runs in the engine's environment, which has modelopt. A copy is the model's folder with the matrices of its layers in
FP8 E4M3, each with a scale for itself and one for its inputs, and all else in bf16.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from irpo_megatron.artifacts import Json, ProgressWriter, partial_directory, read_json, write_json
from irpo_megatron.disk import full_disk_said, require_room
from irpo_megatron.generation.modelopt import quantise
from irpo_megatron.model_files import carried_along
from irpo_megatron.model_folder import CONFIG, ModelFolder, open_model_folder, read_tensor_entries
from irpo_megatron.records import Problem, read_rows
from irpo_megatron.requests import QuantiseRequest
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task
from irpo_megatron.tokenizer import Tokenizer

_MATRIX = "_proj.weight"
"""How the names of a layer's matrices end, in every family."""


def run(request: QuantiseRequest) -> None:
    """Write one folder a model; those that a killed attempt finished are kept.

    Raises:
        UserError: there is not enough room.
        RuntimeError: modelopt left something in other numbers than FP8.
    """
    missing = {
        name: source
        for name, source in request.models.items()
        if request.output / name == request.output or not (request.output / name).exists()
    }
    sources = {name: open_model_folder(source) for name, source in missing.items()}
    rows = {name: calibration_rows(request, source) for name, source in sources.items()}
    request.output.mkdir(parents=True, exist_ok=True)
    progress = ProgressWriter(request.output, total=sum(map(len, rows.values())), unit="prompts")
    for name, source in sources.items():
        folder = request.output / name
        partial = folder if folder == request.output else partial_directory(folder)
        partial.mkdir(exist_ok=True)
        with full_disk_said(partial):
            write_copy(source, partial, rows[name], advance=progress.advance)
        if partial != folder:
            partial.rename(folder)


def calibration_rows(request: QuantiseRequest, source: ModelFolder) -> list[list[int]]:
    """Token ids of training problems, as many as asked for, each prompt with its gold solution where there is one.

    The same problems for every model of a run, so that their scales differ by the models alone.
    """
    settings = request.generation.fp8_weights
    assert settings is not None, "the loop asks for copies only where it is given"
    problems = read_rows(request.problems / "train.parquet", Problem)
    draw = random.Random(derive_seed(request.seed, "calibration"))
    task, tokenizer = load_task(request.task), Tokenizer(source.path)
    return [
        [*tokenizer.encode_prompt(task.prompt(problem)), *tokenizer.encode_text(task.gold_completion(problem) or "")][
            : source.context
        ]
        for problem in draw.sample(problems, min(settings.calibration_prompts, len(problems)))
    ]


def write_copy(
    source: ModelFolder, output: Path, calibration: list[list[int]], *, advance: Callable[[int], None]
) -> None:
    """Write one copy.

    config.json is the source's, with what modelopt says of the numbers, and not as the engine's transformers, which may
    be older than the one that wrote it, would write it.

    Raises:
        UserError: there is not enough room.
        RuntimeError: see `run`.
    """
    tensors = _tensors(source)
    require_room(sum(math.prod(entry["shape"]) * _bytes_of(name) for name, entry in tensors.items()), output)
    quantise(source.path, output, calibration, advance=advance)
    dtype_key = "dtype" if "dtype" in source.config else "torch_dtype"
    numbers = {dtype_key: "bfloat16", "quantization_config": read_json(output / CONFIG)["quantization_config"]}
    write_json(output / CONFIG, {**source.config, **numbers})
    for name in carried_along(source.path):
        (output / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source.path / name, output / name)
    _require_fp8(output, [name for name in tensors if name.endswith(_MATRIX)])


def _require_fp8(copy: Path, matrices: list[str]) -> None:
    """What is in other numbers would be sampled from all the same, and taken for FP8."""
    algorithm = read_json(copy / "hf_quant_config.json")["quantization"]["quant_algo"]
    written = _tensors(open_model_folder(copy))
    stems = [name.removesuffix("weight") for name in matrices]
    others = [
        stem
        for stem in stems
        if not {f"{stem}weight_scale", f"{stem}input_scale"} <= written.keys()
        or written[f"{stem}weight"]["dtype"] != "F8_E4M3"
    ]
    if algorithm != "FP8" or others:
        raise RuntimeError(f"{copy}: quant_algo = {algorithm}; not in FP8 with both scales: {', '.join(others)}")


def _tensors(folder: ModelFolder) -> Json:
    """Name of a tensor -> its entry in a header."""
    files = sorted(set(folder.weight_files.values()))
    return {name: entry for file in files for name, entry in read_tensor_entries(file).items()}


def _bytes_of(name: str) -> int:
    """Of one number of a tensor, in a copy."""
    return 1 if name.endswith(_MATRIX) else 2
