"""Sampling completions from a model: one protocol, its backends, and shards that survive a kill.

    prompts = encode_prompts(problems, load_task("gsm8k"), Tokenizer(model_folder))
    with closing(load_generator(config.generation, model_folder)) as generator:
        for samples in sample_shards(directory, "generations", prompts, generator=generator, ...):
            ...  # one list of `Sample` rows a shard, written before it is yielded

With the backend `transformers`, what a sample says depends on the model, its prompt, the settings and its own seed, and
on nothing else: neither batch size, shard size, order nor interruptions change a token.
"""

from irpo_megatron.generation.backends import load_generator
from irpo_megatron.generation.prompts import Prompt, encode_prompts
from irpo_megatron.generation.protocol import Completion, Generator, SampleRequest, SamplingSettings
from irpo_megatron.generation.shards import sample_shards

__all__ = [
    "Completion",
    "Generator",
    "Prompt",
    "SampleRequest",
    "SamplingSettings",
    "encode_prompts",
    "load_generator",
    "sample_shards",
]
