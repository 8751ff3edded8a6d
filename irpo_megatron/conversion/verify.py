"""The judge of a conversion: does the folder, loaded by transformers, compute what the Megatron model computes?"""

from __future__ import annotations

from pathlib import Path

import torch

from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.logits import logits
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.policy import Policy

TOLERANCE = 1e-4
_ROWS, _TOKENS = 2, 32


def require_same_logits(model: Policy, architecture: Architecture, folder: Path, place: Place) -> None:
    """Compare logits in fp32 on fixed random tokens.

    Args:
        model: A single-process model.

    Raises:
        RuntimeError: they differ by more than `TOLERANCE`: what is generated from would not be what was trained.
    """
    difference = logit_difference(model, architecture, folder, place)
    if not difference <= TOLERANCE:  # also catches NaN
        raise RuntimeError(
            f"logits of {folder} differ from the checkpoint's by {difference:.2e}, allowed {TOLERANCE:.0e}"
        )


def logit_difference(model: Policy, architecture: Architecture, folder: Path, place: Place) -> float:
    """The largest absolute difference between the two models' logits."""
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(architecture.vocabulary, (_ROWS, min(_TOKENS, architecture.context)), generator=generator)
    ours = logits(model, tokens.tolist(), place)[:, : architecture.vocabulary].cpu()
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)(tokens).logits
    return float((ours - theirs.flatten(0, 1)).abs().max())
