"""Megatron distributed checkpoints: a folder with the model's `config.json` and `state/`, for any layout.

A folder appears whole or not at all: every rank writes below a temporary name, rank 0 renames.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel

from irpo_megatron.artifacts import Json, partial_directory, read_json, write_json
from irpo_megatron.engine.optimizer import Optimizer
from irpo_megatron.errors import UserError

STATE = "state"
CONFIG = "config.json"


def save_model(directory: Path, model: GPTModel, config: Json) -> None:
    """Write the weights, and the Hugging Face configuration that describes them."""
    _save(directory, {"model": model.sharded_state_dict()}, config)


def load_model(directory: Path, model: GPTModel) -> None:
    """Read the weights, whatever layout wrote them.

    Raises:
        UserError: the folder is incomplete or its metadata is not a checkpoint's.
    """
    state = _load(directory, {"model": model.sharded_state_dict()})
    model.load_state_dict(state["model"])


def save_training(directory: Path, model: GPTModel, optimizer: Optimizer, config: Json) -> None:
    """Write all that training needs to go on exactly: weights, AdamW's moments, the schedule."""
    model_state = model.sharded_state_dict()
    _save(directory, {"model": model_state, **optimizer.sharded_state(model_state, is_loading=False)}, config)


def load_training(directory: Path, model: GPTModel, optimizer: Optimizer) -> None:
    """Go on from what `save_training` wrote."""
    model_state = model.sharded_state_dict()
    state = _load(directory, {"model": model_state, **optimizer.sharded_state(model_state, is_loading=True)})
    model.load_state_dict(state["model"])
    optimizer.load_state(state)


def read_config(directory: Path) -> Json:
    """The Hugging Face configuration of a checkpoint."""
    return read_json(directory / CONFIG)


def _save(directory: Path, state: dict[str, Any], config: Json) -> None:
    partial = partial_directory(directory)

    def prepare() -> None:
        shutil.rmtree(partial, ignore_errors=True)  # of a writer that was killed
        (partial / STATE).mkdir(parents=True)
        write_json(partial / CONFIG, config)

    _on_main_rank(prepare)
    dist_checkpointing.save(state, str(partial / STATE))
    _on_main_rank(lambda: partial.rename(directory))


def _load(directory: Path, state: dict[str, Any]) -> dict[str, Any]:
    metadata = directory / STATE / ".metadata"
    if not metadata.is_file():
        raise UserError(
            f"{directory} is no complete Megatron checkpoint",
            "a checkpoint has config.json and state/ with its metadata",
            "delete the stage's directory so that it is computed again",
        )
    _refuse_foreign_pickle(metadata)
    loaded: dict[str, Any] = dist_checkpointing.load(state, str(directory / STATE))
    return loaded


def _on_main_rank(action: Callable[[], object]) -> None:
    """Do something once, and let nobody go on before it is done."""
    dist.barrier()
    if dist.get_rank() == 0:
        action()
    dist.barrier()


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the pickled metadata of torch's checkpoint format, and nothing else that a pickle can hold."""

    _MODULES = ("torch.distributed.checkpoint.", "megatron.core.dist_checkpointing.", "torch._utils")
    _NAMES = frozenset(
        {
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and name.removeprefix("u").startswith(("float", "bfloat", "int", "bool"))
        if (module, name) in self._NAMES or is_dtype or f"{module}.".startswith(self._MODULES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _refuse_foreign_pickle(path: Path) -> None:
    """torch unpickles a checkpoint's metadata without restriction, so it is read once under restriction first."""
    try:
        with path.open("rb") as file:
            _MetadataUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: {error}",
            "the metadata of a checkpoint holds only the types of torch's checkpoint format",
            "do not load a checkpoint from a source that you do not trust; delete it so that it is computed again",
        ) from error
