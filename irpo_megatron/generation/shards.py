"""Sampling a list of prompts into Parquet shards, resumable by shard."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from irpo_megatron.artifacts import ProgressWriter, read_json, write_json
from irpo_megatron.errors import UserError
from irpo_megatron.generation.context import check_context
from irpo_megatron.generation.prompts import Prompt
from irpo_megatron.generation.protocol import Completion, Generator, SampleRequest, SamplingSettings
from irpo_megatron.records import Sample, read_rows, write_rows
from irpo_megatron.seeds import derive_seed

logger = logging.getLogger(__name__)


def sample_shards(
    directory: Path,
    prefix: str,
    prompts: Sequence[Prompt],
    *,
    generator: Generator,
    settings: SamplingSettings,
    samples: int,
    run_seed: int,
    seed_names: tuple[str | int, ...],
    shard_prompts: int,
    progress: ProgressWriter,
) -> Iterator[list[Sample]]:
    """Sample every prompt into `<prefix>-00000.parquet`, ... and yield the rows of each shard once it is on disk.

    Rows stand in the order of `prompts`, and of the sample index within a prompt. Shards found in `directory` are read
    instead of sampled again. Nothing happens until the result is iterated.

    Args:
        samples: Completions a prompt.
        run_seed: Sample i of a prompt has the seed `derive_seed(run_seed, *seed_names, prompt.id, i)`.
        shard_prompts: Prompts a shard. A directory keeps the number that it began with.
        progress: Counts samples, those found on disk included.

    Raises:
        UserError: a prompt is too long for the model, the model is broken, or a shard does not hold what it should.
    """
    check_context((prompt.ids for prompt in prompts), settings.max_tokens, generator.context)
    size = _shard_size(directory / f"{prefix}-shards.json", shard_prompts)
    for number, start in enumerate(range(0, len(prompts), size)):
        path = directory / f"{prefix}-{number:05d}.parquet"
        asked = [
            (prompt, index, 0 if settings.temperature == 0 else derive_seed(run_seed, *seed_names, prompt.id, index))
            for prompt in prompts[start : start + size]
            for index in range(samples)
        ]
        if path.exists():
            rows = _read_shard(path, asked)
            progress.advance(len(rows))
        else:
            rows = _sample_shard(asked, generator, settings, progress)
            write_rows(path, rows, Sample)
        yield rows


def _shard_size(path: Path, wanted: int) -> int:
    """The number of prompts a shard that `path` records; `wanted`, recorded from now on, where it records none."""
    if not path.exists():
        write_json(path, {"shard_prompts": wanted})
    return int(read_json(path)["shard_prompts"])


def _sample_shard(
    asked: Sequence[tuple[Prompt, int, int]],
    generator: Generator,
    settings: SamplingSettings,
    progress: ProgressWriter,
) -> list[Sample]:
    """The rows of the (prompt, sample index, seed) that are asked for, in their order."""
    started = time.monotonic()
    requests = [SampleRequest(prompt_ids=prompt.ids, seed=seed) for prompt, _, seed in asked]
    completions: dict[int, Completion] = {}
    for position, completion in generator.generate(requests, settings):
        completions[position] = completion
        progress.advance(1)
    tokens = sum(len(completion.ids) for completion in completions.values())
    logger.info("%d samples, %d tokens in %.1f s", len(asked), tokens, time.monotonic() - started)
    return [
        Sample(
            prompt_id=prompt.id,
            sample_index=index,
            seed=seed,
            prompt=prompt.text,
            prompt_ids=prompt.ids,
            completion=completions[position].text,
            completion_ids=completions[position].ids,
            finish_reason=completions[position].finish_reason,
        )
        for position, (prompt, index, seed) in enumerate(asked)
    ]


def _read_shard(path: Path, asked: Sequence[tuple[Prompt, int, int]]) -> list[Sample]:
    """A shard of an earlier start.

    Raises:
        UserError: its rows are not those asked for.
    """
    rows = read_rows(path, Sample)
    found = [(row.prompt_id, row.sample_index, row.seed) for row in rows]
    if found != [(prompt.id, index, seed) for prompt, index, seed in asked]:
        raise UserError(
            f"{path} holds other samples than this stage would write there",
            "a stage goes on from its own shards only",
            f"delete {path.parent} so that it is computed again",
        )
    return rows
