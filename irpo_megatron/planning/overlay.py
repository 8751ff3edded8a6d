"""A layout as an overlay: a configuration of a few keys on the one that was planned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from irpo_megatron.errors import UserError
from irpo_megatron.planning.layouts import Layout


def write_overlay(path: Path, layout: Layout, *, base: Path, overrides: Sequence[str]) -> None:
    """Write what `irpo run PATH` then takes: the base, the overrides that were planned with, the layout's keys.

    Raises:
        UserError: the file is there, or cannot be written.
    """
    keys = [f"{key}={value}" for key, value in layout.keys.items()]
    tree = OmegaConf.from_dotlist([f"base={os.path.relpath(base, path.parent)}", *overrides, *keys])
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(OmegaConf.to_yaml(tree))
    except FileExistsError as error:
        raise UserError(f"{path} exists", "a plan replaces no file", "remove it, or choose another name") from error
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}", "the overlay is a new file", "choose another place"
        ) from error
