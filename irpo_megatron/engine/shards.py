"""What a rank holds of a model, in the terms of a distributed checkpoint: names and places that no layout changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica

from irpo_megatron.engine.checkpoint import model_state
from irpo_megatron.engine.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of one tensor of one layer.

    Attributes:
        key: The tensor's name in a checkpoint.
        layer: Its place in the stack of layers; None for what there is once.
        offset: Where the part begins within the layer's tensor.
        data: The parameter, or a view of it.
        main: False where another rank holds the same part and speaks for it.
    """

    key: str
    layer: int | None
    offset: tuple[int, ...]
    data: torch.Tensor
    main: bool


def model_shards(model: Sequence[Policy]) -> Iterator[Shard]:
    """Every part of every parameter that this rank holds."""
    state = model_state(model)
    apply_factories(state)  # cuts the feed-forward's gate from its up projection
    for tensor in nested_values(state):
        assert isinstance(tensor, ShardedTensor), tensor
        stacked = tensor.prepend_axis_num
        assert stacked <= 1, tensor
        yield Shard(
            key=tensor.key,
            layer=tensor.global_offset[0] if stacked else None,
            offset=tuple(tensor.global_offset[stacked:]),
            data=tensor.data.detach(),
            main=is_main_replica(tensor.replica_id),
        )
