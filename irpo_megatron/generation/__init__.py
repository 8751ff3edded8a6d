"""Sampling completions from a model: one protocol, its backends, and workers whose shards survive a kill.

The loop starts workers (`generation.worker`), as many as are asked for, on one request; they share its shards through
the file system and end when all are there. The stage that asked for them then reads the shards, without an engine.

With the backend `transformers`, what a sample says depends on the model, its prompt, the settings and its own seed, and
on nothing else: neither batch size, shard size, order, number of workers nor interruptions change a token.
"""

from irpo_megatron.generation.backends import load_generator
from irpo_megatron.generation.prompts import Prompt, encode_prompts
from irpo_megatron.generation.protocol import Completion, Generator, SampleRequest, SamplingSettings
from irpo_megatron.generation.shards import read_shards

__all__ = [
    "Completion",
    "Generator",
    "Prompt",
    "SampleRequest",
    "SamplingSettings",
    "encode_prompts",
    "load_generator",
    "read_shards",
]
