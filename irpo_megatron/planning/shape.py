"""The shape of a model, and how many parameters a rank holds of it: exact counts, from config.json alone."""

from __future__ import annotations

from dataclasses import dataclass

from irpo_megatron.artifacts import Json
from irpo_megatron.config import ParallelConfig
from irpo_megatron.model_config import head_size, kv_heads, positive_int, refused, switch, with_defaults

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

    @property
    def fp8_bytes(self) -> int:
        """Of an FP8 copy: one for a number of the layers' matrices, two for any other."""
        return 2 * self.parameters - self.layers * self.matrix_parameters

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


def read_shape(config: Json) -> Shape:
    """The shape that a Hugging Face config.json describes.

    Raises:
        UserError: it is of no supported family, or a size is missing or not sane.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise refused("model_type", family, f"supported are {', '.join(_FAMILIES)}", "choose another model")
    qkv_bias, qk_norm = _FAMILIES[family]
    config = with_defaults(config)
    return Shape(
        layers=positive_int(config, "num_hidden_layers"),
        hidden_size=positive_int(config, "hidden_size"),
        heads=positive_int(config, "num_attention_heads"),
        kv_heads=kv_heads(config),
        head_size=head_size(config),
        ffn_size=positive_int(config, "intermediate_size"),
        vocabulary=positive_int(config, "vocab_size"),
        tied_embeddings=switch(config, "tie_word_embeddings"),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )
