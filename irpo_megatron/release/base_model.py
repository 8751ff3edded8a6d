"""Which model a run began with: its name, and the folder that says under what licence it came."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.artifacts import MANIFEST, manifest_digest, read_manifest
from irpo_megatron.errors import UserError
from irpo_megatron.report.run_files import Run, load_run

# Where huggingface_hub keeps a repository: models--OWNER--NAME/snapshots/REVISION.
_IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_NAME_ON_THE_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """M_0, or what M_0 was made from by recipes."""

    name: str | None
    """`owner/name` where its folder lies in the Hub's cache, else its folder's name; None where it has none."""
    folder: Path | None
    """None where there is nothing to inherit from: random weights, or a recipe whose run is not at hand."""
    random: bool = False
    recipes: int = 0
    """Runs between it and M_0."""

    @property
    def hub_name(self) -> str | None:
        """The name, if it can be one on the Hub."""
        return self.name if self.name and _NAME_ON_THE_HUB.fullmatch(self.name) else None


def base_model(run: Run, *, recipes: int = 0) -> BaseModel:
    """The model at the beginning of a run, through the runs of its recipes.

    Raises:
        UserError: `model.path` is not there, so nothing says what its licence asks.
    """
    model = run.config.model
    if model.path is not None:
        return BaseModel(name=_name(model.path), folder=_folder(model.path), recipes=recipes)
    if model.random is not None:
        return BaseModel(name=None, folder=None, random=True, recipes=recipes)
    recipe = _run_of_recipe(run.directory.resolve())
    if recipe is None:
        return BaseModel(name=None, folder=None, recipes=recipes + 1)
    return base_model(load_run(recipe), recipes=recipes + 1)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(
            f"model.path = {path} is no folder here",
            "the base model's folder says under what licence a model made from it may be published",
            "put it back, or start in the working directory that the run was started in",
        )
    return path


def _name(path: Path) -> str:
    path = path.absolute()
    if path.parent.name == "snapshots" and (cached := _IN_CACHE.fullmatch(path.parents[1].name)):
        return f"{cached[1]}/{cached[2]}"
    return path.name


def _run_of_recipe(run_dir: Path) -> Path | None:
    """The run beside this one whose last model is this one's M_0; known by content, so both may have been moved."""
    imported = run_dir / "iteration-00" / "checkpoint-megatron"
    wanted = read_manifest(imported)["inputs"].get("model_folder")
    for exported in sorted(run_dir.parent.glob("*/iteration-*/checkpoint-hf")):
        other = exported.parents[1]
        if other != run_dir and (exported / MANIFEST).is_file() and manifest_digest(exported) == wanted:
            return other
    return None
