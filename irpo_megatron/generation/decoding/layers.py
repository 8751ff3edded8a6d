"""The model's layers for one token of many rows, as a few large operations.

transformers' own code does the same in three times as many, which is most of the time where a model is small. Prompts
and the exact model go through that code; the tests hold this one against it.

Shapes: B rows, E hidden size, F feed-forward size, H heads, K key-value heads, D head size, V token ids.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm


class Rotation(NamedTuple):
    """What the rows' positions do to their queries and keys."""

    cos: Tensor
    """[B, D]: the second half repeats the first."""
    sin: Tensor
    """[B, D]: likewise."""


class Operations(Protocol):
    """What a step does between its large products, for the kind of device that it is on."""

    def attend(self, layer: int, heads: Tensor, rotation: Rotation, scaling: float) -> Tensor:
        """What the rows' new tokens see.

        Args:
            heads: [B, H + 2 K, D]: queries, keys and values, none of them rotated yet. The new tokens' keys and
                values are kept.
            scaling: Of the queries.

        Returns:
            [B, H, D].
        """

    def add_and_norm(self, hidden: Tensor, change: Tensor, module: Any) -> Tensor:
        """hidden += change, both [B, E], in place, and what a `module` of root-mean-square norm makes of it."""

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu of the first half of [B, 2 F], times the second: [B, F]."""


class Layers:
    """A transformers model of the Llama kind, its weights joined where they read the same input.

    The model keeps working: its own weights become views of the joined ones.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.base_model
        self._head = model.get_output_embeddings()
        self._layers = [_Layer(layer) for layer in self._model.layers]

    def logits(self, tokens: Tensor, positions: Tensor, step: Operations) -> Tensor:
        """Feed one token [B] a row, at its position [B] in the row's sequence: the logits [B, V] of the next one."""
        hidden = self._model.embed_tokens(tokens)
        rotation = Rotation(*(part[0] for part in self._model.rotary_emb(hidden, positions.unsqueeze(0))))
        normed = norm(self._layers[0].first_norm, hidden)
        following = [layer.first_norm for layer in self._layers[1:]] + [self._model.norm]
        for number, (layer, next_norm) in enumerate(zip(self._layers, following, strict=True)):
            seen = step.attend(number, layer.heads(normed), rotation, layer.scaling)
            normed = step.add_and_norm(hidden, layer.output(seen.flatten(1)), layer.second_norm)
            normed = step.add_and_norm(hidden, layer.down(step.gate(layer.gate_up(normed))), next_norm)
        logits: Tensor = self._head(normed)
        return logits


class _Layer:
    """The large products of a layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        size = attention.head_dim
        self._shape = attention.q_proj.out_features // size, attention.k_proj.out_features // size, size
        self._head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self._qkv = _join(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = _join(mlp.gate_proj, mlp.up_proj)
        self.scaling = attention.scaling
        self.first_norm, self.second_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.output, self.down = attention.o_proj, mlp.down_proj

    def heads(self, normed: Tensor) -> Tensor:
        """[B, E] -> queries, keys and values [B, H + 2 K, D]."""
        heads, kv_heads, size = self._shape
        joined = linear(normed, *self._qkv).view(len(normed), -1, size)
        if self._head_norms is None:
            return joined
        query_norm, key_norm = self._head_norms
        query, key, value = joined[:, :heads], joined[:, heads:-kv_heads], joined[:, -kv_heads:]
        return torch.cat([norm(query_norm, query), norm(key_norm, key), value], dim=1)

    def gate_up(self, normed: Tensor) -> Tensor:
        """[B, E] -> [B, 2 F]."""
        return linear(normed, *self._gate_up)


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


def norm(module: Any, hidden: Tensor) -> Tensor:
    """What a module of root-mean-square norm makes of [..., size]."""
    return rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)
