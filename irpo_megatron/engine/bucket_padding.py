"""Where Megatron-Core 0.16's distributed optimizer finds the state of a parameter that it saves, put right.

Its buffers consist of buckets, each filled up to a multiple of the ranks. To save, it gathers the state without the
filling, and then looks for every parameter where it would lie with it: what is behind the first bucket is saved from
the wrong place, with nothing but a warning (NVIDIA/Megatron-LM#5077). There are several buckets where the model is
large, and where it has pipeline stages and an embedding that is its output matrix too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

State = dict[Any, Any]


def keep_bucket_padding(adam: Any) -> None:
    """Let what is gathered lie as in the buffers.

    Args:
        adam: What `get_megatron_optimizer` made of parameters under its distributed optimizer.
    """
    for part in adam.chained_optimizers:
        part.get_parameter_state_dp_zero = functools.partial(_gather, part.get_parameter_state_dp_zero, part.buffers)


def _gather(gather: Callable[..., State], buffers: list[Any], **options: Any) -> State:
    state = gather(**options)
    for number, buffer in enumerate(buffers):
        for tensors in state[number].values():
            for name, packed in tensors.items():
                if isinstance(packed, torch.Tensor):
                    tensors[name] = spread(packed, buffer)
    return state


def spread(packed: torch.Tensor, buffer: Any) -> torch.Tensor:
    """Numbers of a buffer's buckets, one after the other without filling, as they lie in the buffer; zeros between."""
    spread_out = packed.new_zeros(buffer.numel)
    start = 0
    for bucket in buffer.buckets:
        spread_out[bucket.offset : bucket.offset + bucket.numel_unpadded] = packed[
            start : start + bucket.numel_unpadded
        ]
        start += bucket.numel_unpadded
    return spread_out
