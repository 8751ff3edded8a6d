"""Whether every number of a large tensor is finite, without a copy of it."""

from __future__ import annotations

import torch


def is_finite(tensor: torch.Tensor) -> bool:
    """The sum of a tensor with NaN or infinity is not finite; where it is not, every number is looked at."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
