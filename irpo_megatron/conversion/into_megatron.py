"""Into Megatron: every rank's slices into its model, or a Hugging Face folder's into a distributed checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from irpo_megatron.conversion.out_of_megatron import CheckpointWeights
from irpo_megatron.conversion.progress import Advance
from irpo_megatron.conversion.table import Entry
from irpo_megatron.conversion.weights import Weights
from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.checkpoint_files import Box, TensorToWrite, write_tensors
from irpo_megatron.engine.policy import Policy
from irpo_megatron.engine.shards import model_shards


def load_model(model: Sequence[Policy], weights: Weights | CheckpointWeights) -> None:
    """Fill this rank's part of a model at any layout; each rank reads its own slices and nothing else.

    A model of fewer layers than the weights have gets the first of them.

    Raises:
        UserError: a weight is not finite.
    """
    entries = {(entry.key, entry.layer): entry for entry in weights.entries}
    for shard in model_shards(model):
        weights.fill(shard.data, entries[shard.key, shard.layer], *shard.offset)


def write_checkpoint(
    state: Path,
    weights: Weights,
    architecture: Architecture,
    *,
    tensor_parallel: int,
    threads: int,
    advance: Advance,
) -> None:
    """Write the `state/` folder of a distributed checkpoint that any layout can load.

    Memory: a box a thread. A box is a tensor of one layer, cut for `tensor_parallel`.

    Args:
        tensor_parallel: The layout for which each rank finds its part in boxes of its own.
        advance: Told how many more boxes are on their way to the disk; from any thread.

    Raises:
        UserError: a weight is not finite.
    """
    stacks: dict[str, list[Entry]] = {}
    for entry in weights.entries:
        stacks.setdefault(entry.key, []).append(entry)

    def reader(stack: list[Entry]) -> Callable[[Box], torch.Tensor]:
        def read(box: Box) -> torch.Tensor:
            offset, shape = box
            target = torch.empty(shape, dtype=weights.dtype)
            if stack[0].layer is None:
                weights.fill(target, stack[0], *offset)
            else:
                weights.fill(target[0], stack[offset[0]], *offset[1:])
            advance(1)
            return target

        return read

    tensors = {}
    for key, stack in stacks.items():
        boxes = [box for entry in stack for box in cut(entry, tensor_parallel)]
        depth = () if stack[0].layer is None else (architecture.layers,)
        tensors[key] = TensorToWrite((*depth, *stack[0].shape), weights.dtype, boxes, reader(stack))
    write_tensors(state, tensors, threads=threads)


def count_boxes(weights: Weights, tensor_parallel: int) -> int:
    """How many boxes `write_checkpoint` writes."""
    return sum(len(list(cut(entry, tensor_parallel))) for entry in weights.entries)


def cut(entry: Entry, tensor_parallel: int) -> Iterator[Box]:
    """An entry's boxes in the stacked tensor, one a rank and matrix; the last is short where it does not divide."""
    lead = () if entry.layer is None else (entry.layer,)
    depth = () if entry.layer is None else (1,)
    if entry.cut is None:
        yield (*lead, *(0 for _ in entry.shape)), (*depth, *entry.shape)
        return
    length = entry.shape[entry.cut]
    part = math.ceil(length / (entry.halves * tensor_parallel))
    for start in range(0, length, part):
        offset, shape = [0] * len(entry.shape), list(entry.shape)
        offset[entry.cut], shape[entry.cut] = start, min(part, length - start)
        yield (*lead, *offset), (*depth, *shape)
