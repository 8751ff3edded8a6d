"""The model's layers for one token of many rows, as a few large operations.

transformers' own code does the same in three times as many, which is most of the time where a model is small. Prompts
and the exact model go through that code; the tests hold this one against it.

Shapes: B rows, E hidden size, H heads, K key-value heads, D head size, V token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, scaled query [B, H, D], key [B, K, D], value [B, K, D]) -> [B, H, D]."""


class Layers:
    """A transformers model of the Llama kind, its weights joined where they read the same input.

    The model keeps working: its own weights become views of the joined ones.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.base_model
        self._head = model.get_output_embeddings()
        self._layers = [_Layer(layer) for layer in self._model.layers]

    def logits(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Feed one token [B] a row, at its position [B] in the row's sequence: the logits [B, V] of the next one."""
        hidden = self._model.embed_tokens(tokens)
        cos, sin = (part[0].unsqueeze(1) for part in self._model.rotary_emb(hidden, positions.unsqueeze(0)))
        lower, upper = sin.chunk(2, dim=-1)
        turn = torch.cat([-lower, upper], dim=-1)  # times a head that is rolled by half, what the rotation adds
        for number, layer in enumerate(self._layers):
            hidden = layer(number, hidden, cos, turn, attend)
        logits: Tensor = self._head(_norm(self._model.norm, hidden))
        return logits


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._size = attention.head_dim
        self._heads = attention.q_proj.out_features // self._size
        self._kv_heads = attention.k_proj.out_features // self._size
        self._scaling = attention.scaling
        self._first_norm, self._second_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self._qkv = _join(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = _join(mlp.gate_proj, mlp.up_proj)
        self._output, self._down = attention.o_proj, mlp.down_proj
        self._activation = mlp.act_fn

    def __call__(self, number: int, hidden: Tensor, cos: Tensor, turn: Tensor, attend: Attend) -> Tensor:
        heads = linear(_norm(self._first_norm, hidden), *self._qkv).view(len(hidden), -1, self._size)
        turning, value = heads[:, : -self._kv_heads], heads[:, -self._kv_heads :]
        if self._head_norms is not None:
            query_norm, key_norm = self._head_norms
            query, key = turning[:, : self._heads], turning[:, self._heads :]
            turning = torch.cat([_norm(query_norm, query), _norm(key_norm, key)], dim=1)
        turned = torch.addcmul(turning * cos, turning.roll(self._size // 2, dims=-1), turn)
        query, key = turned[:, : self._heads], turned[:, self._heads :]
        seen = attend(number, query * self._scaling, key, value)
        hidden = _add(hidden, self._output, seen.flatten(1))
        gate, up = linear(_norm(self._second_norm, hidden), *self._gate_up).chunk(2, dim=-1)
        return _add(hidden, self._down, self._activation(gate) * up)


def _join(*modules: Any) -> tuple[Tensor, Tensor | None]:
    """The modules' weights and biases, one below the other; theirs become views of these."""
    weight = torch.cat([module.weight.detach() for module in modules])
    bias = None if modules[0].bias is None else torch.cat([module.bias.detach() for module in modules])
    start = 0
    for module in modules:
        end = start + module.out_features
        module.weight.data = weight[start:end]
        if bias is not None:
            module.bias.data = bias[start:end]
        start = end
    return weight, bias


def _norm(module: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)


def _add(hidden: Tensor, module: Any, change: Tensor) -> Tensor:
    """hidden + module(change)."""
    added = torch.addmm(hidden, change, module.weight.t())
    return added if module.bias is None else added + module.bias
