"""What generation takes: an engine's memory, how many sequences it decodes at once, and tokens a second."""

from __future__ import annotations

from dataclasses import dataclass

from irpo_megatron.config import Config
from irpo_megatron.planning.batches import Lengths
from irpo_megatron.planning.hardware import Device
from irpo_megatron.planning.shape import Shape

# Kernels of a decoding step and layer, where no CUDA graph replays them.
_KERNELS_A_LAYER = 20
# The engine sends its own small all-reduces, two a layer: one message there and back.
_MESSAGES_A_LAYER = 4


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


def engine_of(shape: Shape, config: Config, lengths: Lengths, device: Device, devices: int) -> Engine:
    """The engine that `generation` describes, as often as the devices hold it.

    Each decoding step reads the weights and the keys and values so far, and computes a token of every sequence. The
    backend `transformers` is one process on one device; a server is taken to be cut over the devices of a node.
    """
    generation = config.generation
    section = generation.tensorrt_llm if generation.backend == "tensorrt_llm" else None
    cut, engines = 1, 1
    if generation.backend != "transformers":
        cut = min(devices, device.devices_a_node)
        if section is not None:
            cut = section.tensor_parallel * section.pipeline_parallel
        engines = max(1, devices // cut)
    # The backend `transformers` computes in fp32; the others in the folder's numbers, bf16.
    width = 4 if generation.backend == "transformers" else 2
    kv_width = 1 if section is not None and section.kv_cache_dtype == "fp8" else width
    weights = width * shape.parameters / cut
    room = device.memory_bytes * device.usable_memory - weights
    share = section.kv_cache_fraction if section is not None else 1.0
    longest = lengths.longest_prompt + lengths.longest_completion
    kv_token = shape.kv_bytes_a_token(kv_width) / cut
    # A paged cache holds what sequences have come to, not what they may come to; a plain one holds the longest.
    held = lengths.prompt + lengths.completion if section is not None else longest
    concurrency = max(0, min(generation.batch_size, int(room * share / (kv_token * held))))
    if concurrency == 0:
        return Engine(
            devices=cut,
            engines=engines,
            weights=weights,
            kv_cache=0.0,
            concurrency=0,
            tokens_a_second=0.0,
        )
    number = "fp32" if width == 4 else "bf16"
    rate = device.peak(number) * device.product_share
    read = weights + concurrency * kv_token * (lengths.prompt + lengths.completion / 2)
    step = max(read / (device.bandwidth * device.bandwidth_share), 2 * shape.parameters / cut * concurrency / rate)
    if cut > 1:
        step += shape.layers * _MESSAGES_A_LAYER * device.within_node.latency_seconds
    if section is None or not section.cuda_graphs:
        step = max(step, shape.layers * _KERNELS_A_LAYER * device.launch_seconds)
    # One prompt serves all samples of a problem.
    prefill = 2 * shape.parameters / cut * lengths.prompt / rate / generation.samples
    a_sequence = lengths.completion * step / concurrency + prefill
    return Engine(
        devices=cut,
        engines=engines,
        weights=weights,
        kv_cache=concurrency * kv_token * held,
        concurrency=concurrency,
        tokens_a_second=lengths.completion / a_sequence,
    )
