"""Requests to the stage that samples, and an engine that needs no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from irpo_megatron.config import DataConfig, SelectionConfig
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.config_launch import LaunchConfig
from irpo_megatron.generation import Completion, SampleRequest, SamplingSettings
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


class SeedReader:
    """An engine whose completions spell their requests; of each batch the last one ends first."""

    def __init__(self, *, context: int | None = 100, room: int = 20, dies_after: int | None = None) -> None:
        """
        Args:
            room: Requests a batch.
            dies_after: Completions until it is interrupted; None never.
        """
        self.context = context
        self.pulled: list[SampleRequest] = []
        self.batches: list[int] = []
        """How many requests there were for each batch."""
        self.closed = 0
        self._room = room
        self._dies_after = dies_after

    def generate(
        self, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        waiting, done = enumerate(requests), 0
        while batch := list(islice(waiting, self._room)):
            self.pulled += [request for _, request in batch]
            self.batches.append(len(batch))
            for position, request in reversed(batch):
                if done == self._dies_after:
                    raise KeyboardInterrupt
                text = f"{len(request.prompt_ids)} {request.seed}"
                yield position, Completion(ids=request.prompt_ids, text=text, finish_reason="stop")
                done += 1

    def close(self) -> None:
        self.closed += 1
