"""Values of a Hugging Face config.json: what is not sane is refused, never guessed at."""

from __future__ import annotations

import json
import math
from typing import Any

from irpo_megatron.artifacts import Json
from irpo_megatron.errors import UserError


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


def refused(key: str, value: Any, rule: str, remedy: str) -> UserError:
    """The error about one key of config.json."""
    return UserError(f"config.json has {key} = {json.dumps(value)}", rule, remedy)
