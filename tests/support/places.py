"""A place in a layout without processes around it: what lays out tokens asks for numbers only."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from irpo_megatron.config import ParallelConfig, PrecisionConfig
from irpo_megatron.engine.parallel import Place

ALONE = dist.ProcessGroup(0, 1)
"""A group of one rank: it is asked for its size and never to communicate."""


def place(*, context_rank: int = 0, data_rank: int = 0, transformer_engine: bool = False, **changes: Any) -> Place:
    """A process on the last pipeline stage.

    Args:
        changes: Other fields of `Place`, and of `ParallelConfig`.
    """
    layout = ParallelConfig(**{name: changes.pop(name) for name in ParallelConfig.model_fields if name in changes})
    fields: dict[str, Any] = {
        "layout": layout,
        "precision": PrecisionConfig(),
        "rank": 0,
        "data_rank": data_rank,
        "context_rank": context_rank,
        "is_last_stage": True,
        "holds_results": context_rank == 0,
        "tensor_group": ALONE,
        "context_group": ALONE,
        "device": torch.device("cpu"),
        "transformer_engine": transformer_engine,
    }
    return Place(**fields | changes)
