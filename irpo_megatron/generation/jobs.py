"""A job as a worker finds it: the prompts, and the shards that they are cut into."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.claims.files import shard_path
from irpo_megatron.generation.prompts import encode_prompts
from irpo_megatron.generation.protocol import SamplingSettings
from irpo_megatron.generation.shards import Shard, shard_size
from irpo_megatron.records import Problem, read_rows
from irpo_megatron.requests import SamplingJob, WorkerRequest
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task
from irpo_megatron.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Job:
    """Samples to be drawn from one model under the same settings."""

    model_folder: Path
    settings: SamplingSettings
    guarded: bool
    shards: dict[str, Shard]
    """By name, in the order in which they are claimed: the longest first, so that none is left over at the end."""

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The token ids of every prompt."""
        return [prompt.ids for shard in self.shards.values() for prompt in shard.prompts]


def plan_job(request: WorkerRequest, job: SamplingJob) -> Job:
    """Cut a job into shards; all workers come to the same ones.

    Raises:
        UserError: the model folder has no usable tokenizer.
    """
    generation = request.generation
    directory = request.output / job.directory
    directory.mkdir(parents=True, exist_ok=True)
    problems = problems_of(job, seed=request.seed, iteration=request.iteration)
    prompts = encode_prompts(problems, load_task(request.task), Tokenizer(job.model_folder))
    size = shard_size(directory / f"{job.prefix}-shards.json", generation.shard_prompts)
    shards = {
        (name := (job.directory / f"{job.prefix}-{number:05d}").as_posix()): Shard(
            path=shard_path(request.output, name),
            prompts=prompts[start : start + size],
            samples=job.samples,
            greedy=job.temperature == 0,
            run_seed=request.seed,
            seed_names=job.seed_names,
        )
        for number, start in enumerate(range(0, len(prompts), size))
    }
    return Job(
        model_folder=job.model_folder,
        settings=SamplingSettings(
            temperature=job.temperature,
            top_p=generation.top_p,
            max_tokens=generation.max_tokens,
            stop=generation.stop,
        ),
        guarded=job.guarded,
        shards=dict(sorted(shards.items(), key=lambda item: -item[1].expected_tokens)),  # stable: of equals the first
    )


def problems_of(job: SamplingJob, *, seed: int, iteration: int) -> list[Problem]:
    """The job's problems, in the order of its files."""
    first, *others = (read_rows(path, Problem) for path in job.problems)
    if job.draw is not None and job.draw < len(first):
        drawn = random.Random(derive_seed(seed, "problems", iteration)).sample(range(len(first)), job.draw)
        first = [first[position] for position in sorted(drawn)]
    return [*first, *(problem for problems in others for problem in problems)]
