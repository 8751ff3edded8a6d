"""NVIDIA's optional packages for training on CUDA, looked for without importing them.

Importing would be wrong in both cases: without CUDA an import of Transformer Engine raises, and a package that is
merely called apex runs whatever it holds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from irpo_megatron.errors import UserError

# From, up to but not including: the range that Megatron-Core 0.16.1 is tested with, and that the extra
# `transformer-engine` installs.
TRANSFORMER_ENGINE_VERSIONS = ((2, 9), (2, 12))

# Its torch extension is compiled against the torch that is installed, so pip must not build it in a fresh environment.
INSTALL_TRANSFORMER_ENGINE = 'pip install --no-build-isolation "irpo-megatron[transformer-engine]"'


def transformer_engine_version() -> str | None:
    """The version of Transformer Engine; None where it is not installed."""
    try:
        return importlib.metadata.version("transformer-engine")
    except importlib.metadata.PackageNotFoundError:
        return None


def has_transformer_engine() -> bool:
    """Whether a Transformer Engine is installed that Megatron-Core is tested with.

    Raises:
        UserError: one of another version is. Its layers are not simply left unused: Megatron-Core imports whichever it
            finds, and plain torch in its place would be slow without a word.
    """
    version = transformer_engine_version()
    if version is None:
        return False
    oldest, too_new = TRANSFORMER_ENGINE_VERSIONS
    number = re.match(r"(\d+)\.(\d+)", version)
    if number is None or not oldest <= (int(number[1]), int(number[2])) < too_new:
        raise UserError(
            f"Transformer Engine {version} is installed",
            f"Megatron-Core 0.16 is tested with Transformer Engine {_dotted(oldest)} up to, not including, "
            f"{_dotted(too_new)}",
            f"{INSTALL_TRANSFORMER_ENGINE}, or pip uninstall transformer-engine and train without it",
        )
    return True


def require_transformer_engine(asked: str) -> None:
    """Refuse what only Transformer Engine can do where it is not installed.

    Args:
        asked: The key that asks for it, with its value.

    Raises:
        UserError: it is not installed, or in another version than Megatron-Core is tested with.
    """
    if not has_transformer_engine():
        raise UserError(
            f"{asked}, and Transformer Engine is not installed",
            "FP8 matrix products are Transformer Engine's, which needs CUDA",
            f"on a machine with CUDA: {INSTALL_TRANSFORMER_ENGINE}; elsewhere set precision.fp8=null",
        )


def apex_provides_fused_weight_gradients() -> bool:
    """Whether gradients of weights can be added to their fp32 sums by NVIDIA apex's kernel.

    By what is there, never by the name: apex is built with or without its kernels, and another package has its name.
    """
    return importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def refuse_other_apex() -> None:
    """Refuse a package called apex that is not NVIDIA's.

    Megatron-Core imports apex wherever it is found. The one on PyPI, a toolkit for web pages, fails in its imports at
    best, which Megatron-Core takes for its absence. Any other error takes Megatron-Core down, and an import that
    succeeds (a mere folder of that name will do) makes it count on kernels that are not there.

    Raises:
        UserError: such a package can be imported.
    """
    found = importlib.util.find_spec("apex")
    if found is None:
        return
    folders = list(found.submodule_search_locations or ())
    if any((Path(folder) / "optimizers").is_dir() for folder in folders):
        return
    where = found.origin or ", ".join(folders)
    raise UserError(
        f"{where} is a package called apex, and not NVIDIA's: it has no apex.optimizers",
        "Megatron-Core takes any package called apex for NVIDIA's; the `apex` on PyPI is another package",
        "pip uninstall apex, or remove that folder; NVIDIA's is optional, and built from its source (NVIDIA/apex on "
        "GitHub), there: APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation .",
    )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
