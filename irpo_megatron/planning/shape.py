"""The shape of a model, and how many parameters a rank holds of it: exact counts, from config.json alone."""

from __future__ import annotations

import json
from dataclasses import dataclass

from irpo_megatron.artifacts import Json
from irpo_megatron.config import ParallelConfig
from irpo_megatron.errors import UserError

# Whether query, key and value have biases, and whether each head of query and key passes a norm.
_FAMILIES = {"llama": (False, False), "mistral": (False, False), "qwen2": (True, False), "qwen3": (False, True)}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder: RMSNorm, grouped-query attention, gated feed-forward."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    vocabulary: int
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Of the keys; the values are as wide."""
        return self.kv_heads * self.head_size

    @property
    def matrix_parameters(self) -> int:
        """Of one layer's four matrices, whole: what a token is multiplied with."""
        attention = self.hidden_size * (2 * self.query_width + 2 * self.kv_width)
        return attention + 3 * self.hidden_size * self.ffn_size

    @property
    def norm_parameters(self) -> int:
        """Of one layer; every tensor-parallel rank holds them all."""
        return 2 * self.hidden_size + (2 * self.head_size if self.qk_norm else 0)

    @property
    def bias_parameters(self) -> int:
        return self.query_width + 2 * self.kv_width if self.qkv_bias else 0

    def layer_parameters(self, tensor: int = 1) -> int:
        """Of one layer on one of `tensor` tensor-parallel ranks."""
        return (self.matrix_parameters + self.bias_parameters) // tensor + self.norm_parameters

    def vocabulary_rows(self, tensor: int = 1) -> int:
        """Rows of the embedding on a tensor-parallel rank: the vocabulary is padded to a multiple of TP."""
        return -(-self.vocabulary // tensor)

    @property
    def parameters(self) -> int:
        """Of the whole model, as its checkpoint has them."""
        return rank_parameters(self, ParallelConfig(), stage=0)

    def kv_bytes_a_token(self, bytes_a_number: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_width * bytes_a_number


def rank_parameters(shape: Shape, parallel: ParallelConfig, *, stage: int) -> int:
    """Parameters of one rank of pipeline stage `stage`.

    The first stage holds the embedding, the last one the output matrix (its own copy of the embedding where the two are
    tied) and the last norm.
    """
    count = shape.layers // parallel.pipeline * shape.layer_parameters(parallel.tensor)
    matrix = shape.vocabulary_rows(parallel.tensor) * shape.hidden_size
    is_first, is_last = stage == 0, stage == parallel.pipeline - 1
    if is_first:
        count += matrix
    if is_last:
        count += shape.hidden_size
        if not (is_first and shape.tied_embeddings):
            count += matrix
    return count


def read_shape(config: Json, origin: str) -> Shape:
    """The shape that a Hugging Face config.json describes.

    Args:
        origin: Where it comes from, for the message.

    Raises:
        UserError: a key is missing or no whole number above 0, or the family is not known.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise UserError(
            f"{origin} has model_type = {json.dumps(family)}",
            f"the families known are {', '.join(_FAMILIES)}",
            "choose another model",
        )
    qkv_bias, qk_norm = _FAMILIES[family]

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or value < 1:
            raise UserError(
                f"{origin} has {key} = {json.dumps(value)}", f"{key} is a whole number above 0", "restore config.json"
            )
        return value

    heads, hidden_size = number("num_attention_heads"), number("hidden_size")
    return Shape(
        layers=number("num_hidden_layers"),
        hidden_size=hidden_size,
        heads=heads,
        # Where the key is missing, only a Llama is sure to have as many as it has heads.
        kv_heads=number("num_key_value_heads", heads if family == "llama" else None),
        head_size=number("head_dim", 128 if family == "qwen3" else hidden_size // heads),
        ffn_size=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )
