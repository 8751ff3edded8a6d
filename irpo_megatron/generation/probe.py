"""What an interpreter has for a backend, and for FP8: asked before anything heavy starts, without importing an engine.

python -m irpo_megatron.generation.probe BACKEND [fp8]
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys

import irpo_megatron
from irpo_megatron.artifacts import Json

PACKAGES = {
    "transformers": ("torch", "transformers"),
    "tensorrt_llm": ("tensorrt_llm",),
    "openai": ("httpx", "tenacity"),
    "fp8": ("modelopt", "transformers"),
}
_DISTRIBUTIONS = {"modelopt": "nvidia-modelopt"}


def describe_interpreter(*wanted: str) -> Json:
    """The version of this package here, and of every package of what is wanted; None where one is not installed.

    Args:
        wanted: A backend; `fp8` where copies are to be made for it.
    """
    return {
        "irpo_megatron": irpo_megatron.__version__,
        "packages": {name: _version(name) for which in wanted for name in PACKAGES[which]},
    }


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    print(json.dumps(describe_interpreter(*sys.argv[1:])))
