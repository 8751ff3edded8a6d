"""What generation is said to take, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest
from planning.engine_counts import config_of

from irpo_megatron.errors import UserError
from irpo_megatron.planning.batches import Lengths
from irpo_megatron.planning.hardware import DEVICES
from irpo_megatron.planning.known_shapes import KNOWN_CONFIGS
from irpo_megatron.planning.sampling import Engine, engine_of
from irpo_megatron.planning.shape import read_shape

LENGTHS = Lengths(prompt=100, completion=300, longest_prompt=200, longest_completion=500)
LLAMA = read_shape(KNOWN_CONFIGS["llama2-70b"])
# Two tensors of 80 layers, 8 key-value heads of 128, in bf16.
KV_BYTES = 2 * 80 * 8 * 128 * 2


def engine(devices: int = 16, **generation: Any) -> Engine:
    generation = {"backend": "tensorrt_llm", "tensorrt_llm": {"tensor_parallel": 8}, **generation}
    return engine_of(LLAMA, config_of(generation=generation), LENGTHS, DEVICES["h100-80gb"], devices)


def test_weights_and_cache_are_cut_over_an_engines_devices() -> None:
    made = engine(batch_size=64)
    assert (made.devices, made.engines, made.concurrency) == (8, 2, 64)
    assert made.weights == pytest.approx(2 * LLAMA.parameters / 8)
    assert made.kv_cache == pytest.approx(64 * 400 * KV_BYTES / 8)


def test_there_are_as_many_engines_as_workers_on_each_node() -> None:
    assert engine(devices=8, workers=2, tensorrt_llm={"tensor_parallel": 4}).engines == 2
    assert engine(devices=32, workers=2, tensorrt_llm={"tensor_parallel": 4}).engines == 8
    assert engine(backend="transformers", devices=8).engines == 1


def test_as_many_sequences_are_decoded_at_once_as_the_cache_holds() -> None:
    made = engine(batch_size=100_000, tensorrt_llm={"tensor_parallel": 4, "kv_cache_fraction": 0.5})
    room = (0.9 * 80e9 - 2 * LLAMA.parameters / 4) * 0.5
    assert made.concurrency == int(room / (400 * KV_BYTES / 4))
    doubled = engine(
        batch_size=100_000, tensorrt_llm={"tensor_parallel": 4, "kv_cache_fraction": 0.5, "kv_cache_dtype": "fp8"}
    )
    assert doubled.concurrency // 2 == made.concurrency


def test_a_decoding_step_reads_the_weights_and_the_cache() -> None:
    """One sequence at a time, its prompt spread over the samples: an eighth of 138 GB, and 80 layers' messages."""
    made = engine(batch_size=1, samples=1_000_000)
    read = (2 * LLAMA.parameters + 250 * KV_BYTES) / 8
    step = read / (3.35e12 * 0.8) + 80 * 4 * 1.9e-6
    assert made.tokens_a_second == pytest.approx(1 / step, rel=1e-4)
    assert made.seconds(1000) == pytest.approx(1000 * step / 2, rel=1e-4)  # two engines


def test_the_backend_transformers_keeps_a_second_copy_in_fp32_and_no_more_cache_than_it_may() -> None:
    small = read_shape(KNOWN_CONFIGS["llama3.2-1b"])
    section = {"dtype": "fp32", "kv_cache_mib": 1024}
    config = config_of(generation={"transformers": section, "max_tokens": 400, "samples": 10})
    made = engine_of(small, config, LENGTHS, DEVICES["h100-80gb"], 16)
    assert made.weights == 12 * small.parameters
    assert made.concurrency == 1024 * 2**20 // ((400 + 10) * 2 * 16 * 512 * 4)
    config = config_of(generation={"transformers": {**section, "dtype": "bf16"}, "max_tokens": 400, "samples": 10})
    assert engine_of(small, config, LENGTHS, DEVICES["h100-80gb"], 16).weights == 2 * small.parameters


def test_fp8_copies_take_a_byte_for_each_number_of_a_layers_matrices() -> None:
    """Llama-2-70B: 80 layers; queries and their output 8192 x 8192, keys and values 8192 x 1024, three of 28672."""
    matrices = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    made = engine(batch_size=1, samples=1_000_000, tensorrt_llm={"tensor_parallel": 8, "fp8_weights": {}})
    assert made.weights == pytest.approx((2 * LLAMA.parameters - matrices) / 8)
    step = (made.weights + 250 * KV_BYTES / 8) / (3.35e12 * 0.8) + 80 * 4 * 1.9e-6
    assert made.tokens_a_second == pytest.approx(1 / step, rel=1e-4)
    config = config_of(generation={"backend": "tensorrt_llm", "tensorrt_llm": {"fp8_weights": {}}})
    with pytest.raises(UserError, match="a100-80gb has no matrix products in fp8"):
        engine_of(LLAMA, config, LENGTHS, DEVICES["a100-80gb"], 8)


def test_a_model_that_does_not_fit() -> None:
    made = engine(backend="transformers", tensorrt_llm=None)
    assert (made.devices, made.concurrency) == (1, 0)
    assert made.seconds(1) == float("inf")
