"""A step's operations on a CPU, by compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from irpo_megatron.generation.decoding import kernels
from irpo_megatron.generation.decoding.layers import Rotation
from irpo_megatron.generation.decoding.pages import Pages
from irpo_megatron.generation.decoding.rows import Rows


class CpuStep:
    """`layers.Operations` for one new token a row."""

    def __init__(self, own: Pages, shared: Pages, rows: Rows) -> None:
        """
        Args:
            own: The rows' own pages.
            shared: Their prompts' pages.
        """
        self._own, self._shared = own.tokens, shared.tokens
        pages = (rows.pages, rows.counts, rows.prompt_pages, rows.prompt_tokens)
        self._pages = [_array(part) for part in pages]

    def attend(self, layer: int, heads: Tensor, rotation: Rotation, scaling: float) -> Tensor:
        """See the protocol."""
        stores = [_array(tokens) for pool in (self._own, self._shared) for tokens in pool[layer]]
        turn = [_array(part.float()) for part in rotation]
        size = heads.shape[-1]
        seen = heads.new_empty(len(heads), heads.shape[1] - 2 * stores[0].shape[1], size)
        kernels.attend(_array(heads), *turn, np.float32(scaling), *stores, *self._pages, (0,) * size, _array(seen))
        return seen

    def add_and_norm(self, hidden: Tensor, change: Tensor, module: Any) -> Tensor:
        """See the protocol."""
        normed, epsilon = torch.empty_like(hidden), np.float32(module.variance_epsilon)
        kernels.add_and_norm(_array(hidden), _array(change), _array(module.weight), epsilon, _array(normed))
        return normed

    def gate(self, gate_up: Tensor) -> Tensor:
        """See the protocol."""
        gated = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        kernels.gate(_array(gate_up), _array(gated))
        return gated


def _array(tensor: Tensor) -> Any:
    """The same memory for numpy, which has no bf16: its bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
