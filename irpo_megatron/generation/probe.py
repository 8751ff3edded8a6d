"""What an interpreter has for a backend: asked before anything heavy starts, without importing an engine.

python -m irpo_megatron.generation.probe BACKEND
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys

import irpo_megatron
from irpo_megatron.artifacts import Json

_PACKAGES = {
    "transformers": ("torch", "transformers"),
    "tensorrt_llm": ("tensorrt_llm",),
    "openai": ("httpx", "tenacity"),
}


def describe_interpreter(backend: str) -> Json:
    """The version of this package here, and of every package of the backend; None where one is not installed."""
    return {
        "irpo_megatron": irpo_megatron.__version__,
        "packages": {name: _version(name) for name in _PACKAGES[backend]},
    }


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    print(json.dumps(describe_interpreter(sys.argv[1])))
