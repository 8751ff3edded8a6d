"""What a rank holds while it trains: bytes at the moment when they are most.

The terms follow the code, tensor by tensor: what Megatron-Core's wrapper and its distributed optimizer keep
(`engine/optimizer.py`), what each module keeps for the backward pass (`engine/attention.py`, `feed_forward.py`,
`norm.py`, Megatron-Core's linear layers), and the logits of a chunk (`losses/log_probs.py`). docs/planning.md derives
them, and shows what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from irpo_megatron.config import Config, ParallelConfig
from irpo_megatron.planning.batches import Batches, MicroBatch
from irpo_megatron.planning.shape import Shape, rank_parameters

_FP32 = 4
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at its peak."""

    weights: float
    gradients: float
    optimizer: float
    """AdamW's moments, and in bf16 the fp32 weights."""
    activations: float
    """What forward passes keep for their backward passes, of all micro-batches in flight."""
    logits: float
    """Of a chunk, with what the output layer needs besides; where they all fit, they are kept."""
    layer: float
    """What the backward pass of a layer needs besides, and what it makes again."""

    @property
    def total(self) -> float:
        """The logits are gone before the layers' backward passes begin, so only the larger of the last two counts."""
        held = self.weights + self.gradients + self.optimizer + self.activations
        return held + max(self.logits, self.layer)


def number_bytes(config: Config) -> int:
    """Of a weight or an activation."""
    return 2 if config.precision.dtype == "bf16" else 4


def training_memory(shape: Shape, config: Config, batches: Batches, *, stage: int, on_cpu: bool) -> Memory:
    """The peak of a rank of pipeline stage `stage` in an optimizer step after the first."""
    parallel, width = config.parallel, number_bytes(config)
    parameters = rank_parameters(shape, parallel, stage=stage)
    # Main weights are the weights themselves in fp32.
    state_bytes = 12 if width == 2 else 8
    batch = batches.fullest
    layers_in_flight, batches_in_flight = in_flight(shape.layers, parallel, batches.count, stage=stage)
    layer = kept_by_layer(shape, config, batch, on_cpu=on_cpu)
    kept = layers_in_flight * layer.kept
    if stage < parallel.pipeline - 1:  # Megatron-Core keeps what it has sent on until the gradient comes back
        kept += batches_in_flight * layer.boundary
    logits = 0.0
    if stage == parallel.pipeline - 1:
        kept += 2 * layer.boundary  # the last norm's input and output
        logits = _output_bytes(shape, config, batch, on_cpu=on_cpu)
    return Memory(
        weights=width * parameters,
        gradients=_FP32 * parameters,
        optimizer=state_bytes * parameters / (parallel.data * parallel.context),
        activations=kept,
        logits=logits,
        layer=layer.recomputed + layer.backward,
    )


def in_flight(layers: int, parallel: ParallelConfig, micro_batches: int, *, stage: int) -> tuple[float, int]:
    """(layers x micro-batches, micro-batches) that wait for their backward pass on a pipeline stage, at most."""
    if parallel.virtual_pipeline == 1:
        waiting = min(micro_batches, parallel.pipeline - stage)
        return waiting * layers / parallel.pipeline, waiting
    # Megatron-Core's interleaved schedule: its warm-up, and the one at work.
    groups = parallel.virtual_pipeline
    warm_up = 2 * (parallel.pipeline - stage - 1) + (groups - 1) * parallel.pipeline
    waiting = min(micro_batches * groups, warm_up + 1)
    return waiting * layers / (parallel.pipeline * groups), waiting


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """Of one layer and one micro-batch on a rank.

    Attributes:
        kept: From its forward pass to its backward pass.
        recomputed: What the backward pass makes again of it.
        backward: What its backward pass needs besides.
        boundary: Its input, which is the output of the one before.
        whole: What it keeps where nothing is recomputed.
    """

    kept: float
    recomputed: float
    backward: float
    boundary: float
    whole: float


def kept_by_layer(shape: Shape, config: Config, batch: MicroBatch, *, on_cpu: bool) -> LayerBytes:
    """What the modules of a layer keep; t local tokens, h hidden size, q and k query and key width, f feed-forward."""
    parallel, recompute, b = config.parallel, config.training.recompute, number_bytes(config)
    tensor = parallel.tensor
    t = batch.tokens / parallel.context
    q, k, f = shape.query_width / tensor, shape.kv_width / tensor, shape.ffn_size / tensor
    boundary = t * shape.hidden_size * b / (tensor if parallel.sequence else 1)
    attention = _attention_bytes(shape, config, batch, on_cpu=on_cpu)
    mixed = t * (q + 2 * k) * b + (t * q * b if shape.heads != shape.kv_heads else 0)
    # Both norms' inputs and outputs; the output matrix's input; gate, up, and their product.
    outside = 4 * boundary + t * q * b + 3 * t * f * b
    whole = outside + attention
    kept, recomputed = {
        "none": (whole, 0.0),
        "selective": (outside + mixed, attention),
        "full": (boundary, whole),
    }[recompute]
    # Gradients: of the residual stream and of the layer's output; of the feed-forward's product, of gate and up, with
    # one temporary of the activation; of the matrix that makes gate and up.
    backward = t * b * (2 * shape.hidden_size + 4 * f) + 2 * f * shape.hidden_size * b
    return LayerBytes(kept=kept, recomputed=recomputed, backward=backward, boundary=boundary, whole=whole)


def _attention_bytes(shape: Shape, config: Config, batch: MicroBatch, *, on_cpu: bool) -> float:
    """What core attention keeps: rotated queries, keys, values, its output."""
    parallel, b = config.parallel, number_bytes(config)
    t = batch.tokens / parallel.context
    q, k = shape.query_width / parallel.tensor, shape.kv_width / parallel.tensor
    # Rotated keys, and the values with all that they were cut from.
    keys = t * (k + q + 2 * k)
    if not on_cpu and b == 2 and not batch.shared:  # Transformer Engine, whose output is the next product's input
        return b * (t * q + keys)
    # torch's attention, a call for each stretch: its output, before the calls' outputs are put together.
    outputs = t * q
    masks = batch.masked_scores / parallel.context if on_cpu else 0.0
    if parallel.context > 1:  # gathered, of the whole micro-batch
        keys = 2 * batch.tokens * k
    elif batch.shared:
        keys = 0.0
    if batch.shared:  # prompt and completion put together for each call
        keys += 2 * batch.keys / parallel.context * k
    return b * (t * q + keys + outputs + masks)


def _output_bytes(shape: Shape, config: Config, batch: MicroBatch, *, on_cpu: bool) -> float:
    """Logits of a chunk, and what the output layer needs besides."""
    parallel, b = config.parallel, number_bytes(config)
    rows = shape.vocabulary_rows(parallel.tensor)
    predicted = batch.predicted / parallel.context
    chunk = predicted / math.ceil(predicted / _most_rows(shape, config))
    hidden = 2 * predicted * shape.hidden_size * b  # the predicting states, and their gradient
    if b == _FP32:
        return chunk * rows * _FP32 + hidden
    rounded = chunk * rows * b
    product = 0.0 if on_cpu else rows * shape.hidden_size * _FP32  # of the output matrix's gradient
    return chunk * rows * _FP32 + hidden + rounded + product


def logits_fit(shape: Shape, config: Config, batch: MicroBatch) -> bool:
    """Whether a rank's logits all fit into `training.log_prob_mib`, so that they are kept for the backward pass."""
    return batch.predicted / config.parallel.context <= _most_rows(shape, config)


def _most_rows(shape: Shape, config: Config) -> float:
    """Tokens whose logits may exist at once."""
    rows = shape.vocabulary_rows(config.parallel.tensor)
    return max(1.0, config.training.log_prob_mib * _MIB // (_FP32 * rows))
