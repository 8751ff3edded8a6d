"""Sums over the ranks of a process group, inside a loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def sum_over_ranks(values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum over a group whose ranks all go on to compute the same loss from it.

    Each rank's gradient is that of its own part: d loss / d part = d loss / d sum. (Summing the gradients over the
    ranks, as a generic differentiable all-reduce does, would count the one loss once a rank.)

    Args:
        values: Any shape, this rank's part.

    Returns:
        As `values`, the same on every rank of the group.
    """
    total: torch.Tensor = _SumOverRanks.apply(values, group)  # type: ignore[no-untyped-call]
    return total


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        if group.size() > 1:
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None
