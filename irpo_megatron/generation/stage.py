"""Sample N completions a prompt from M_{t-1} (paper, section 2).

python -m irpo_megatron.process irpo_megatron.generation.stage REQUEST.json
"""

from __future__ import annotations

import random
from contextlib import closing

from irpo_megatron.artifacts import ProgressWriter
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.generation import SamplingSettings, encode_prompts, load_generator, sample_shards
from irpo_megatron.generation.guard import SampleGuard
from irpo_megatron.records import Problem, read_rows
from irpo_megatron.requests import GenerateRequest
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task
from irpo_megatron.tokenizer import Tokenizer

# Shares among fewer samples than this say little: the stage goes on to the next shard.
_ENOUGH_SAMPLES = 256


def run(request: GenerateRequest) -> None:
    """Write the shards `generations-00000.parquet`, ... of `Sample` rows, in the order of the problems.

    Raises:
        UserError: the model, its tokenizer or the engine is unusable, a prompt is too long for the model, or too many
            samples are empty or cut off.
    """
    generation = request.generation
    prompts = encode_prompts(problems_to_sample(request), load_task(request.task), Tokenizer(request.model_folder))
    guard = SampleGuard(generation)
    with closing(load_generator(generation, request.model_folder)) as generator:
        shards = sample_shards(
            request.output,
            "generations",
            prompts,
            generator=generator,
            settings=SamplingSettings(
                temperature=temperature_at(generation, request.iteration),
                top_p=generation.top_p,
                max_tokens=generation.max_tokens,
                stop=generation.stop,
            ),
            samples=generation.samples,
            run_seed=request.seed,
            seed_names=("sample", request.iteration),
            shard_prompts=generation.shard_prompts,
            progress=ProgressWriter(request.output, total=len(prompts) * generation.samples, unit="samples"),
        )
        for samples in shards:
            guard.add(samples)
            guard.check(at_least=_ENOUGH_SAMPLES)
    guard.check()


def problems_to_sample(request: GenerateRequest) -> list[Problem]:
    """The iteration's training problems, then the held-out ones where a retraining is to use them too."""
    train = read_rows(request.problems / "train.parquet", Problem)
    wanted = request.data.problems_per_iteration
    if wanted is not None and wanted < len(train):
        draw = random.Random(derive_seed(request.seed, "problems", request.iteration))
        train = [train[position] for position in sorted(draw.sample(range(len(train)), wanted))]
    held_out = read_rows(request.problems / "held_out.parquet", Problem) if request.selection.retrain else []
    return train + held_out


def temperature_at(generation: GenerationConfig, iteration: int) -> float:
    """The temperature of a 1-based iteration: the list's entry for it, or the one number."""
    temperature = generation.temperature
    return temperature[iteration - 1] if isinstance(temperature, tuple) else temperature
