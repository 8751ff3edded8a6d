"""What generation takes: an engine's memory, how many sequences it decodes at once, and tokens a second."""

from __future__ import annotations

import math
from dataclasses import dataclass

from irpo_megatron.config import Config
from irpo_megatron.planning.batches import Lengths
from irpo_megatron.planning.hardware import Device
from irpo_megatron.planning.shape import Shape

# Kernels of a decoding step and layer, where no CUDA graph replays them.
_KERNELS_A_LAYER = 20
# The engine sends its own small all-reduces, two a layer: one message there and back.
_MESSAGES_A_LAYER = 4
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine on its devices; `engines` of them side by side.

    Attributes:
        devices: That it is cut over.
        weights: Bytes on each of its devices.
        kv_cache: Bytes on each of its devices, of the sequences decoded at once.
        concurrency: Sequences decoded at once; 0 where not even one fits beside the weights.
        tokens_a_second: Of one engine, prompts included in the time.
    """

    devices: int
    engines: int
    weights: float
    kv_cache: float
    concurrency: int
    tokens_a_second: float

    def seconds(self, tokens: float) -> float:
        """For so many completion tokens, dealt out to the engines."""
        return tokens / (self.tokens_a_second * self.engines) if self.concurrency else float("inf")


@dataclass(frozen=True, kw_only=True)
class _Backend:
    """How an engine computes.

    Attributes:
        devices: That one engine is cut over.
        engines: How many of them there are.
        number: That it computes with: `fp32`, `bf16` or `fp8`.
        weight_bytes: Of a parameter on average, with all copies of it.
        kv_bytes: Of a number in the cache.
        kv_tokens: That a sequence takes up in the cache.
        kv_share: Of what the weights leave, for the cache.
        kv_most: Bytes that the cache may take at most.
        starts_kernels: No CUDA graph replays a decoding step.
    """

    devices: int
    engines: int
    number: str
    weight_bytes: float
    kv_bytes: int
    kv_tokens: float
    kv_share: float = 1.0
    kv_most: float = float("inf")
    starts_kernels: bool = False


def engine_of(shape: Shape, config: Config, lengths: Lengths, device: Device, devices: int) -> Engine:
    """The engine that `generation` describes, as often as there are workers.

    Each decoding step reads the weights and the keys and values so far, and computes a token of every sequence. One
    prompt is computed for all samples of a problem.
    """
    backend = _backend(shape, config, lengths, device, devices)
    weights = backend.weight_bytes * shape.parameters / backend.devices
    parameters = shape.parameters / backend.devices
    kv_token = shape.kv_bytes_a_token(backend.kv_bytes) / backend.devices
    left = device.memory_bytes * device.usable_memory - weights
    room = min(left * backend.kv_share, backend.kv_most)
    concurrency = max(0, min(config.generation.batch_size, int(room / (kv_token * backend.kv_tokens))))
    rate = device.peak(backend.number) * device.product_share
    width = {"fp32": 4, "bf16": 2, "fp8": backend.weight_bytes}[backend.number]
    read = width * parameters + concurrency * kv_token * (lengths.prompt + lengths.completion / 2)
    step = max(read / (device.bandwidth * device.bandwidth_share), 2 * parameters * concurrency / rate)
    if backend.starts_kernels:
        step = max(step, shape.layers * _KERNELS_A_LAYER * device.launch_seconds)
    if backend.devices > 1:
        step += shape.layers * _MESSAGES_A_LAYER * device.within_node.latency_seconds
    prefill = 2 * parameters * lengths.prompt / rate / config.generation.samples
    return Engine(
        devices=backend.devices,
        engines=backend.engines,
        weights=weights,
        kv_cache=concurrency * kv_token * backend.kv_tokens,
        concurrency=concurrency,
        tokens_a_second=1 / (step / concurrency + prefill / lengths.completion) if concurrency else 0.0,
    )


def _backend(shape: Shape, config: Config, lengths: Lengths, device: Device, devices: int) -> _Backend:
    """`transformers` runs on one device; a server is taken to be one, cut over the devices of a node."""
    generation = config.generation
    workers = generation.workers * math.ceil(devices / device.devices_a_node)  # so many on each node
    grown = lengths.prompt + lengths.completion  # a paged cache holds what sequences have come to
    if generation.backend == "transformers":
        fp32 = generation.transformers.dtype == "fp32"
        return _Backend(
            devices=1,
            engines=workers,
            number=generation.transformers.dtype,
            weight_bytes=12 if fp32 else 2,  # in fp32 a copy in float64 settles doubtful choices
            kv_bytes=4 if fp32 else 2,
            # Room for the longest completion is set aside; the prompt is there once for all its samples.
            kv_tokens=generation.max_tokens + lengths.prompt / generation.samples,
            kv_most=generation.transformers.kv_cache_mib * _MIB,
            starts_kernels=True,
        )
    section = generation.tensorrt_llm if generation.backend == "tensorrt_llm" else None
    if section is None:
        cut = min(devices, device.devices_a_node)
        return _Backend(devices=cut, engines=1, number="bf16", weight_bytes=2, kv_bytes=2, kv_tokens=grown)
    in_fp8 = section.fp8_weights is not None
    return _Backend(
        devices=section.tensor_parallel * section.pipeline_parallel,
        engines=workers,
        number="fp8" if in_fp8 else "bf16",
        weight_bytes=shape.fp8_bytes / shape.parameters if in_fp8 else 2,
        kv_bytes=1 if section.kv_cache_dtype == "fp8" else 2,
        kv_tokens=grown,
        kv_share=section.kv_cache_fraction,
        starts_kernels=not section.cuda_graphs,
    )
