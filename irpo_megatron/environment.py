"""What a run was computed with: versions and machine, and nothing secret."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from irpo_megatron.artifacts import Json

_PACKAGES = (
    "irpo-megatron",
    "megatron-core",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "pydantic",
    "omegaconf",
    "numpy",
    "transformer-engine",
    "tensorrt-llm",
)


def describe_environment() -> Json:
    """Versions of what computes (null where it is not installed), and the machine."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
