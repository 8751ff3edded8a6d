"""A model with its weights, from a Megatron checkpoint."""

from __future__ import annotations

from pathlib import Path

from irpo_megatron.engine.architecture import Architecture, read_architecture
from irpo_megatron.engine.checkpoint import load_model, read_config
from irpo_megatron.engine.model import Recompute, build_model
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.policy import Policy


def load_policy(checkpoint: Path, place: Place, *, recompute: Recompute = "none") -> tuple[list[Policy], Architecture]:
    """This rank's part of the model that a checkpoint holds, whatever layout wrote it."""
    architecture = read_architecture(read_config(checkpoint))
    model = build_model(architecture, place, recompute=recompute)
    load_model(checkpoint, model)
    return model, architecture
