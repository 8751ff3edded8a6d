"""Finished runs to release, and base models under each licence."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from report.synthetic_run import RunBuilder

from irpo_megatron.artifacts import MANIFEST, Plan, commit_stage, manifest_digest, open_stage, read_json, write_json

PROBLEMS = 100
RIGHT = (50, 65, 80)
"""Of the test problems, greedily, by iteration."""
VOTED = (53, 68, 83)
"""The same of the vote."""
MODEL_FILES = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}),
    "generation_config.json": "{}",
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer_config.json": '{"eos_token": "</s>"}',
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "model-00001-of-00002.safetensors": "first weights" * 1000,
    "model-00002-of-00002.safetensors": "other weights" * 1000,
    "model.safetensors.index.json": "{}",
}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval, by the roots of (p - x)^2 = z^2 x (1 - x) / n: another way than the package's."""
    z, p = 1.959963984540054, successes / n
    a, b, c = 1 + z * z / n, -(2 * p + z * z / n), p * p
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def make_run(root: Path, *, evaluated: int = 2, files: dict[str, str] | None = None, **config: Any) -> Path:
    """A run of two iterations whose `checkpoint-hf/` hold files, and whose evaluations are of these.

    Args:
        evaluated: Iterations from which on there is no evaluation are those above this one.
        files: What M_1 and M_2 consist of.
    """
    builder = RunBuilder(root, **config)
    builder.base()
    _set_accuracy(builder, 0)
    write_json(
        builder.directory / "problems" / "counts.json", {"train": 70, "held_out": 30, "test": PROBLEMS, "in_both": 0}
    )
    for number in (1, 2):
        builder.iteration(number, up_to="selection")
        commit_checkpoint(builder.directory, number, files or MODEL_FILES)
        if number <= evaluated:
            builder.evaluation(number)
            _set_accuracy(builder, number)
    return builder.directory


def checkpoint_of(run_dir: Path, number: int) -> Path:
    return run_dir / f"iteration-{number:02d}" / "checkpoint-hf"


def commit_checkpoint(run_dir: Path, number: int, files: dict[str, str]) -> None:
    """As the stage commits it, with hashes."""
    work = _opened(checkpoint_of(run_dir, number), number)
    for name, text in files.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(f"{text}", encoding="utf-8")
    commit_stage(checkpoint_of(run_dir, number))


def commit_folder(run_dir: Path, number: int, model: Path) -> None:
    """The same, of a real model."""
    shutil.rmtree(checkpoint_of(run_dir, number))
    shutil.copytree(model, _opened(checkpoint_of(run_dir, number), number), dirs_exist_ok=True)
    commit_stage(checkpoint_of(run_dir, number))
    name_model(run_dir, number)


def name_model(run_dir: Path, number: int) -> None:
    """Say in the evaluation's manifest which model it is of."""
    manifest = run_dir / f"iteration-{number:02d}" / "evaluation" / MANIFEST
    inputs = {"model_folder": manifest_digest(checkpoint_of(run_dir, number))}
    write_json(manifest, read_json(manifest) | {"inputs": inputs})


def make_base(folder: Path, *, licence: str | None = None, **files: str) -> Path:
    """A base model's folder: its card says `licence`; further files by name, `__` for a dot."""
    folder.mkdir(parents=True)
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlanguage: en\nlicense: {licence}\n---\n# A model\n", encoding="utf-8")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def _opened(directory: Path, number: int) -> Path:
    work = open_stage(directory, Plan(stage="convert", config={}, inputs={"selection": str(number)}))
    assert work is not None
    return work


def _set_accuracy(builder: RunBuilder, number: int) -> None:
    results = builder.directory / f"iteration-{number:02d}" / "evaluation" / "results.json"
    voted = {"k": 8, "accuracy": VOTED[number] / PROBLEMS, "interval": list(wilson(VOTED[number], PROBLEMS))}
    write_json(
        results,
        read_json(results)
        | {
            "problems": PROBLEMS,
            "accuracy": RIGHT[number] / PROBLEMS,
            "interval": list(wilson(RIGHT[number], PROBLEMS)),
            "majority": voted,
        },
    )
    if number > 0:
        name_model(builder.directory, number)
