"""The shape of a model, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from irpo_megatron.artifacts import Json
from irpo_megatron.engine.rope_config import RopeScaling, read_rope
from irpo_megatron.model_config import (
    head_size,
    kv_heads,
    positive_int,
    positive_number,
    refused,
    switch,
    with_defaults,
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder: RMSNorm, rotary embeddings, grouped-query attention, gated SiLU feed-forward."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    vocabulary: int
    """Rows of the embedding in the checkpoint; Megatron's is padded to a multiple of TP."""
    context: int
    rope_base: float
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float
    tied_embeddings: bool
    qkv_bias: bool = False
    """Query, key and value have biases."""
    qk_norm: bool = False
    """Each head of query and key passes an RMSNorm before it is rotated."""

    def padded_vocabulary(self, tensor_parallel: int) -> int:
        """Rows of the embedding when it is cut over `tensor_parallel` ranks."""
        return -(-self.vocabulary // tensor_parallel) * tensor_parallel


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a `model_type` implies."""

    qkv_bias: bool = False
    qk_norm: bool = False
    slides: bool = False
    """`sliding_window` is in force wherever it is not null."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(slides=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
}


def read_architecture(config: Json) -> Architecture:
    """The architecture that a Hugging Face configuration describes.

    Raises:
        UserError: it is of no supported family, or a value is not sane; a key that changes the computation and is not
            supported is never ignored.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise refused("model_type", model_type, f"supported are {', '.join(FAMILIES)}", "choose another model")
    config = with_defaults(config)
    for key, rule, remedy in _unsupported(config, family):
        raise refused(key, config[key], rule, remedy)
    rope_base, rope_scaling = read_rope(config)
    return Architecture(
        layers=positive_int(config, "num_hidden_layers"),
        hidden_size=positive_int(config, "hidden_size"),
        heads=positive_int(config, "num_attention_heads"),
        kv_heads=kv_heads(config),
        head_size=head_size(config),
        ffn_size=positive_int(config, "intermediate_size"),
        vocabulary=positive_int(config, "vocab_size"),
        context=positive_int(config, "max_position_embeddings"),
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        norm_epsilon=positive_number(config, "rms_norm_eps"),
        tied_embeddings=switch(config, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
    )


def _unsupported(config: Json, family: Family) -> Iterator[tuple[str, str, str]]:
    """Key, rule and remedy of what would change the computation."""
    if config["hidden_act"] != "silu":
        yield "hidden_act", "the activation is silu", "choose another model"
    for key in ("attention_bias", "mlp_bias"):
        if switch(config, key):
            yield key, "there are no biases but those of a Qwen2's query, key and value", "choose another model"
    everything = "every token attends to all tokens before it"
    if switch(config, "use_sliding_window"):
        yield "use_sliding_window", everything, "choose another model"
    window: Any = config.get("sliding_window")
    if family.slides and window is not None:
        context, size = positive_int(config, "max_position_embeddings"), positive_int(config, "sliding_window")
        if size < context:
            yield (
                "sliding_window",
                f"{everything}, up to max_position_embeddings = {context}",
                f"lower max_position_embeddings to {size} in config.json: no sequence is then longer than the window",
            )
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list) or any(layer != "full_attention" for layer in layer_types):
        yield "layer_types", f"{everything}: every layer is full_attention", "choose another model"
    if config.get("per_layer_config") is not None:
        yield "per_layer_config", "all layers are alike", "choose another model"
