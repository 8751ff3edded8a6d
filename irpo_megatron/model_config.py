"""Values of a Hugging Face config.json: what is not sane is refused, never guessed at."""

from __future__ import annotations

import json
import math
from typing import Any

from irpo_megatron.artifacts import Json
from irpo_megatron.errors import UserError

ROPE_THETA = 10000.0
"""Base of the rotary embeddings where nothing is said."""
_DEFAULTS: Json = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

DEFAULTS: dict[str, Json] = {
    "llama": _DEFAULTS,
    "mistral": {**_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {**_DEFAULTS, "num_key_value_heads": 32},
    "qwen3": {**_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
}
"""What transformers takes where the config.json of a `model_type` lacks a key; others are refused or derived."""


def with_defaults(config: Json) -> Json:
    """A configuration of a family that is supported, with what its file leaves unsaid."""
    return {**DEFAULTS[config["model_type"]], **config}


def unsaid_in_older_names(config: Json) -> Json:
    """What transformers 5 reads of rotary embeddings in `rope_parameters`, and 4, by its names, would not find.

    Returns:
        Keys and values that would say it to both; none where both read the same.
    """
    newer = config.get("rope_parameters") or {}
    older: Json = {}
    if newer.get("rope_theta", ROPE_THETA) != ROPE_THETA:
        older["rope_theta"] = newer["rope_theta"]
    if newer.get("rope_type", "default") != "default":
        older["rope_scaling"] = {key: value for key, value in newer.items() if key != "rope_theta"}
    return {key: value for key, value in older.items() if config.get(key) is None}


def positive_int(config: Json, key: str) -> int:
    """A size.

    Raises:
        UserError: it is missing, or no whole number above 0.
    """
    value: Any = config.get(key)
    if type(value) is not int or value < 1:
        raise refused(key, value, f"{key} is a whole number above 0", "restore config.json")
    return value


def positive_number(config: Json, key: str) -> float:
    """A number with or without a decimal point.

    Raises:
        UserError: it is missing, or no finite number above 0.
    """
    value: Any = config.get(key)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise refused(key, value, f"{key} is a number above 0", "restore config.json")
    return float(value)


def switch(config: Json, key: str) -> bool:
    """A choice of two; off where it is missing.

    Raises:
        UserError: it is neither true nor false.
    """
    value: Any = config.get(key)
    if value is not None and type(value) is not bool:
        raise refused(key, value, f"{key} is true or false", "restore config.json")
    return bool(value)


def kv_heads(config: Json) -> int:
    """Heads of keys and values; those of the queries where nothing else is said.

    Raises:
        UserError: they do not divide the queries'.
    """
    heads = positive_int(config, "num_attention_heads")
    if config.get("num_key_value_heads") is None:
        return heads
    groups = positive_int(config, "num_key_value_heads")
    if heads % groups != 0:
        rule = f"num_key_value_heads divides num_attention_heads = {heads}"
        raise refused("num_key_value_heads", groups, rule, "restore config.json")
    return groups


def head_size(config: Json) -> int:
    """Width of a head.

    Raises:
        UserError: it is not whole, or odd.
    """
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


def refused(key: str, value: Any, rule: str, remedy: str) -> UserError:
    """The error about one key of config.json."""
    return UserError(f"config.json has {key} = {json.dumps(value)}", rule, remedy)
