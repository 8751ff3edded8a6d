"""The start-up check: `import megatron.core`, with the known ways that it fails said plainly."""

from __future__ import annotations

import importlib

from irpo_megatron.errors import UserError


def import_megatron() -> None:
    """Import Megatron-Core and what its checkpoints need.

    Raises:
        UserError: Megatron-Core or psutil is missing, or an installed Transformer Engine is broken.
    """
    try:
        importlib.import_module("megatron.core")
    except ImportError as error:
        raise UserError(
            f"import megatron.core: {error}",
            "training, reference and conversion run on Megatron-Core",
            'pip install "irpo-megatron[train]"',
        ) from error
    except RuntimeError as error:
        # Megatron-Core guards its import of Transformer Engine against ImportError only; a Transformer Engine without
        # its CUDA libraries raises RuntimeError instead and takes Megatron-Core down with it.
        raise UserError(
            f"import megatron.core: {error}",
            "an installed Transformer Engine must be able to load its CUDA libraries",
            "without CUDA: pip uninstall transformer-engine transformer-engine-cu12 transformer-engine-cu13",
        ) from error
    try:
        importlib.import_module("psutil")
    except ImportError as error:
        # Without psutil the process that writes a checkpoint dies and the one that waits for it hangs for ever.
        raise UserError(
            "psutil is not installed",
            "Megatron-Core's checkpoint writer needs psutil, though it does not declare it",
            "pip install psutil",
        ) from error
