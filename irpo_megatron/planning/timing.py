"""Seconds of an optimizer step: products, memory, links, and what waits.

A layer's forward pass takes what its products need at the device's share of its peak, and what its tensors need to be
written once and read once; where that is less than its kernels take to start, it takes that. A collective goes round a
ring: bytes over bandwidth, and a latency for each of its steps. Nothing here has been measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from irpo_megatron.config import Config
from irpo_megatron.planning.batches import Batches, MicroBatch
from irpo_megatron.planning.flops import Flops, forward_flops
from irpo_megatron.planning.hardware import Device, Link
from irpo_megatron.planning.memory import kept_by_layer, logits_fit, number_bytes
from irpo_megatron.planning.shape import Shape, rank_parameters

# Kernels of a layer's forward pass: four products, attention, two norms, two rotations, the activation, two additions,
# and what casts or moves. Its backward pass has twice as many.
_KERNELS_A_LAYER = 16
# Bytes that AdamW reads and writes for a parameter: gradient, main weight, two moments, the weight in its own numbers.
_ADAM_BYTES = 30


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of an optimizer step on the slowest pipeline stage."""

    compute: float
    tensor: float
    """Communication of tensor parallelism; likewise the next three."""
    context: float
    pipeline: float
    data: float
    """As far as it does not hide behind computation."""
    bubble: float
    optimizer: float
    latency: float
    """What of all these is kernels that start and messages that are on their way, whatever their size."""

    @property
    def fixed(self) -> float:
        """What a larger global batch would not lengthen."""
        return self.data + self.bubble + self.optimizer

    @property
    def total(self) -> float:
        communication = self.tensor + self.context + self.pipeline + self.data
        return self.compute + communication + self.bubble + self.optimizer


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """Seconds of a micro-batch, forward or backward, on one pipeline stage."""

    compute: float
    tensor: float
    context: float
    latency: float

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.context


def step_time(shape: Shape, config: Config, batches: Batches, device: Device, *, on_cpu: bool) -> StepTime:
    """An optimizer step at a layout."""
    parallel, width = config.parallel, number_bytes(config)
    mean = batches.total.times(1 / batches.count)
    forward = _pass(shape, config, mean, device, backward=False, on_cpu=on_cpu)
    backward = _pass(shape, config, mean, device, backward=True, on_cpu=on_cpu)
    pipeline = pipeline_latency = 0.0
    if parallel.pipeline > 1:
        link = _link(device, parallel.world_size)  # stages are as far apart as ranks can be
        size = mean.tokens / parallel.context * shape.hidden_size * width
        messages = 2 * batches.count * parallel.virtual_pipeline
        pipeline_latency = messages * link.latency_seconds
        pipeline = pipeline_latency + messages * size / link.bytes_a_second
    group = parallel.data * parallel.context
    parameters = max(rank_parameters(shape, parallel, stage=stage) for stage in (0, parallel.pipeline - 1))
    link = _link(device, parallel.tensor * group)
    scatter = _ring(4 * parameters, group, link)
    gather = _ring(width * parameters, group, link)
    if not on_cpu:  # hidden behind the last backward pass, and the first forward pass
        scatter, gather = max(0.0, scatter - backward.total), max(0.0, gather - forward.total)
    a_batch = forward.total + backward.total
    return StepTime(
        compute=batches.count * (forward.compute + backward.compute),
        tensor=batches.count * (forward.tensor + backward.tensor),
        context=batches.count * (forward.context + backward.context),
        pipeline=pipeline,
        data=scatter + gather,
        bubble=(parallel.pipeline - 1) / parallel.virtual_pipeline * a_batch,
        optimizer=_ADAM_BYTES * parameters / group / (device.bandwidth * device.bandwidth_share),
        latency=batches.count * (forward.latency + backward.latency) + pipeline_latency,
    )


def forward_time(shape: Shape, config: Config, batch: MicroBatch, device: Device, *, on_cpu: bool) -> float:
    """Seconds of one micro-batch's forward pass on a pipeline stage."""
    return _pass(shape, config, batch, device, backward=False, on_cpu=on_cpu).total


def _pass(shape: Shape, config: Config, batch: MicroBatch, device: Device, *, backward: bool, on_cpu: bool) -> _Pass:
    """The last pipeline stage's, which has the output matrix too."""
    parallel, training, width = config.parallel, config.training, number_bytes(config)
    tensor, layers = parallel.tensor, shape.layers / parallel.pipeline
    again = 1 if backward and training.recompute == "full" else 0
    flops = forward_flops(shape, batch)
    times = Flops(
        matrices=(2 if backward else 1) + again,
        attention=(2.5 if backward else 1) + (backward and training.recompute != "none"),
        output=(2 if backward else 1) + (backward and not logits_fit(shape, config, batch)),
    )
    shards = tensor * parallel.context * parallel.pipeline
    number = "fp8" if config.precision.fp8 is not None else config.precision.dtype
    rate = device.peak(config.precision.dtype) * device.product_share
    products = flops.matrices * times.matrices / shards / (device.peak(number) * device.product_share)
    products += flops.attention * times.attention / shards / rate
    touched = layers * kept_by_layer(shape, config, batch, on_cpu=on_cpu).whole
    moved = 2 * touched * times.matrices / (device.bandwidth * device.bandwidth_share)
    # However few the tokens, the weights are read.
    weights = layers * shape.layer_parameters(tensor) * width * times.matrices / device.bandwidth
    busy = max(products + moved, weights)
    starts = layers * _KERNELS_A_LAYER * times.matrices * device.launch_seconds
    output = flops.output * times.output / tensor / parallel.context / rate
    exchanged = batch.tokens / parallel.context * shape.hidden_size * width
    # Two sums a layer in each pass; with SP a gather and a scatter each, and the inputs gathered again for the weights'
    # gradients.
    rounds = 2 * (1 + again) + (1 if backward and parallel.sequence else 0)
    all_reduce = 2 * _ring(exchanged, tensor, _link(device, tensor))
    keys = 2 * batch.tokens * shape.kv_width / tensor * width
    reach = _link(device, tensor * parallel.context)
    return _Pass(
        compute=max(busy, starts) + output,
        tensor=layers * rounds * all_reduce,
        context=layers * (1 + again) * _ring(keys, parallel.context, reach),
        latency=max(0.0, starts - busy)
        + layers * rounds * 2 * _ring(0, tensor, _link(device, tensor))
        + layers * (1 + again) * _ring(0, parallel.context, reach),
    )


def _ring(size: float, ranks: int, link: Link) -> float:
    """A gather or a scatter of `size` bytes in all."""
    return (ranks - 1) * (size / ranks / link.bytes_a_second + link.latency_seconds)


def _link(device: Device, reach: int) -> Link:
    """Between ranks of which so many are neighbours by number."""
    return device.within_node if reach <= device.devices_a_node else device.between_nodes
