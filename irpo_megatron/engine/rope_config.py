"""Rotary embeddings as a Hugging Face config.json describes them.

Newer ones say it all in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`. Versions of transformers
differ in which they read first, so two that disagree are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from irpo_megatron.artifacts import Json
from irpo_megatron.errors import UserError
from irpo_megatron.model_config import ROPE_THETA, positive_int, positive_number, refused

_EITHER = {"rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
_KEYS = {"default": _EITHER, "llama3": _EITHER | {"factor", "low_freq_factor", "high_freq_factor"}}
"""For each type that is supported, the keys that are understood."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How Llama 3.1 and later stretch a model over a longer context (rope type `llama3`).

    Frequencies that turn often within the original context stay as they are, those that turn seldom are divided by
    `factor`, those between are interpolated.
    """

    factor: float
    low_frequency_factor: float
    """Fewer turns within the original context than this are few."""
    high_frequency_factor: float
    """More turns than this are many."""
    original_context: int
    """In tokens."""


def read_rope(config: Json) -> tuple[float, RopeScaling | None]:
    """Base of the rotary embeddings, and their scaling.

    Raises:
        UserError: another type than default and llama3, a setting that is not known, or two that disagree.
    """
    settings = _settings(config)
    rope_type = settings.setdefault("rope_type", "default")
    if not isinstance(rope_type, str) or rope_type not in _KEYS:
        raise refused("rope_type", rope_type, f"supported are {' and '.join(_KEYS)}", "choose another model")
    for key in settings.keys() - _KEYS[rope_type]:
        raise refused(
            key,
            settings[key],
            f"rotary embeddings of type {rope_type} have {', '.join(sorted(_KEYS[rope_type]))}",
            "remove the key if transformers ignores it, or choose another model",
        )
    if settings.get("partial_rotary_factor", 1) != 1:
        raise refused(
            "partial_rotary_factor",
            settings["partial_rotary_factor"],
            "every component of a head is rotated",
            "choose another model",
        )
    base = positive_number({"rope_theta": ROPE_THETA, **settings}, "rope_theta")
    return base, _llama3(settings) if rope_type == "llama3" else None


def _settings(config: Json) -> Json:
    """All settings by their newer names; null is as good as missing."""
    top = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    places: list[Any] = [{key: config.get(key) for key in top}]
    for key in ("rope_parameters", "rope_scaling"):
        places.append(config.get(key) or {})
        if not isinstance(places[-1], dict):
            raise refused(key, config[key], f"{key} is an object or null", "restore config.json")
    settings: Json = {}
    for key, value in ((key, value) for place in places for key, value in place.items() if value is not None):
        name = "rope_type" if key == "type" else key
        if name in settings and settings[name] != value:
            raise UserError(
                f"config.json has {name} = {json.dumps(settings[name])}, and {name} = {json.dumps(value)}",
                "rope_theta, rope_parameters and rope_scaling do not contradict each other",
                "remove the wrong one",
            )
        settings[name] = value
    return settings


def _llama3(settings: Json) -> RopeScaling:
    scaling = RopeScaling(
        factor=positive_number(settings, "factor"),
        low_frequency_factor=positive_number(settings, "low_freq_factor"),
        high_frequency_factor=positive_number(settings, "high_freq_factor"),
        original_context=positive_int(settings, "original_max_position_embeddings"),
    )
    if scaling.factor < 1:
        raise refused("factor", settings["factor"], "factor is 1 or more", "restore config.json")
    if scaling.low_frequency_factor >= scaling.high_frequency_factor:
        raise refused(
            "low_freq_factor",
            settings["low_freq_factor"],
            f"low_freq_factor is below high_freq_factor = {settings['high_freq_factor']}",
            "restore config.json",
        )
    return scaling
