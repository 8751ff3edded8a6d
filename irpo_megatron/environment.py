"""What a run was computed with: versions and machine, and nothing secret."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from irpo_megatron.artifacts import Json
from irpo_megatron.errors import UserError

# Where docker/*.Dockerfile leave the versions that the image was built from.
IMAGE_VERSIONS = Path("/etc/irpo-megatron/versions.env")
_LONGEST = 16 * 1024
_PIN = re.compile(r"(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>[A-Za-z0-9._:@/+-]+)")

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
    """Versions of what computes (null where it is not installed), the image (null outside of one), and the machine."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "image": image_versions(IMAGE_VERSIONS),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def image_versions(path: Path) -> dict[str, str] | None:
    """What the container image that this process is in was built from, by name; None outside of an image.

    Raises:
        UserError: the file holds anything but comments and lines of the form NAME=VALUE, each name once.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        text = file.read(_LONGEST + 1)
    lines = [line for line in text.decode(errors="replace").splitlines() if line and not line.startswith("#")]
    pins = [_PIN.fullmatch(line) for line in lines]
    versions = {pin["name"]: pin["value"] for pin in pins if pin is not None}
    if len(text) > _LONGEST or len(versions) < len(lines):
        raise UserError(
            f"{path} is not as docker/versions.env of this project is",
            f"its lines are comments and NAME=VALUE, each name once, {_LONGEST} bytes in all",
            "build the image again with make images",
        )
    return versions
