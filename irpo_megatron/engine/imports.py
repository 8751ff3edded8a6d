"""The start-up check: `import megatron.core`, with the known ways that it fails said plainly."""

from __future__ import annotations

import importlib
import warnings

from irpo_megatron.errors import UserError
from irpo_megatron.nvidia_packages import INSTALL_TRANSFORMER_ENGINE, refuse_other_apex


def import_megatron() -> None:
    """Import Megatron-Core and what its checkpoints need.

    Raises:
        UserError: Megatron-Core or psutil is missing, an installed Transformer Engine is broken, or another package
            has the name of NVIDIA's apex.
    """
    refuse_other_apex()
    # That both are optional is known, and half a dozen modules say it whenever one of them is imported.
    warnings.filterwarnings("ignore", message=r"(Transformer Engine and )?Apex (is|are) not installed")
    try:
        importlib.import_module("megatron.core")
    except ImportError as error:
        raise UserError(
            f"import megatron.core: {error}",
            "training, reference and conversion run on Megatron-Core",
            'pip install "irpo-megatron[train]"',
        ) from error
    except (RuntimeError, OSError, AssertionError) as error:
        # Megatron-Core guards its import of Transformer Engine against ImportError only. A Transformer Engine without
        # its CUDA libraries raises RuntimeError, without its torch extension FileNotFoundError, with one of another
        # version AssertionError, and takes Megatron-Core down with it.
        raise UserError(
            f"import megatron.core: {error}",
            "an installed Transformer Engine must be able to load its CUDA libraries",
            f"with CUDA: {INSTALL_TRANSFORMER_ENGINE}; without: pip uninstall transformer-engine "
            "transformer-engine-cu12 transformer-engine-cu13 transformer-engine-torch",
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
