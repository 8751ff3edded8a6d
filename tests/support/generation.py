"""Requests to the stage that samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from irpo_megatron.config import DataConfig, LaunchConfig, SelectionConfig
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.requests import GenerateRequest


def make_request(output: Path, problems: Path, model_folder: Path, **changes: Any) -> GenerateRequest:
    """A request for 4 samples of each training problem; `changes` are keys of `generation` or fields of the request."""
    generation = {
        "samples": 4,
        "temperature": 1.5,
        "max_tokens": 12,
        "shard_prompts": 5,
        "max_empty_share": 1.0,
        "max_truncated_share": 1.0,
    }
    generation |= {key: changes.pop(key) for key in list(changes) if key in GenerationConfig.model_fields}
    output.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "seed": 3,
        "task": "arithmetic",
        "iteration": 2,
        "data": DataConfig(train="x", test="x"),
        "selection": SelectionConfig(held_out=3),
        "launch": LaunchConfig(threads=1),
    } | changes
    return GenerateRequest(
        output=output,
        problems=problems,
        model_folder=model_folder,
        generation=GenerationConfig.model_validate(generation),
        **fields,
    )
