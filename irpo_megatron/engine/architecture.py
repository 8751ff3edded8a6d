"""The shape of a model, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from irpo_megatron.artifacts import Json
from irpo_megatron.engine.config_values import positive_int, positive_number, refused, switch
from irpo_megatron.engine.rope_config import RopeScaling, read_rope


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
    defaults: Json
    """What transformers takes where config.json lacks a key; other missing keys are refused or derived."""


_DEFAULTS: Json = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

FAMILIES = {
    "llama": Family(defaults=_DEFAULTS),
    "mistral": Family(slides=True, defaults={**_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": Family(qkv_bias=True, defaults={**_DEFAULTS, "num_key_value_heads": 32}),
    "qwen3": Family(qk_norm=True, defaults={**_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128}),
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
    config = {**family.defaults, **config}
    for key, rule, remedy in _unsupported(config, family):
        raise refused(key, config[key], rule, remedy)
    rope_base, rope_scaling = read_rope(config)
    return Architecture(
        layers=positive_int(config, "num_hidden_layers"),
        hidden_size=positive_int(config, "hidden_size"),
        heads=positive_int(config, "num_attention_heads"),
        kv_heads=_kv_heads(config),
        head_size=_head_size(config),
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


def _kv_heads(config: Json) -> int:
    heads = positive_int(config, "num_attention_heads")
    if config.get("num_key_value_heads") is None:
        return heads
    kv_heads = positive_int(config, "num_key_value_heads")
    if heads % kv_heads != 0:
        rule = f"num_key_value_heads divides num_attention_heads = {heads}"
        raise refused("num_key_value_heads", kv_heads, rule, "restore config.json")
    return kv_heads


def _head_size(config: Json) -> int:
    heads, hidden_size = positive_int(config, "num_attention_heads"), positive_int(config, "hidden_size")
    if config.get("head_dim") is not None:
        size = positive_int(config, "head_dim")
    elif hidden_size % heads == 0:
        size = hidden_size // heads
    else:
        rule = f"num_attention_heads = {heads} divides hidden_size, where head_dim does not say otherwise"
        raise refused("hidden_size", hidden_size, rule, "restore config.json")
    if size % 2 != 0:
        key = "head_dim" if config.get("head_dim") is not None else "hidden_size / num_attention_heads"
        raise refused(key, size, "the size of a head is even: rotary embeddings pair its halves", "restore config.json")
    return size
