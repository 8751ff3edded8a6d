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
    partial, replaced = partial_directory(directory), directory.with_name(f"{directory.name}.replaced")

    def prepare() -> None:
        for leftover in (partial, replaced):  # of a writer that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        (partial / STATE).mkdir(parents=True)
        write_json(partial / CONFIG, config)

    def publish() -> None:
        # A stage that was killed after it had saved this step comes by again: never is a half-deleted folder in sight.
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
        shutil.rmtree(replaced, ignore_errors=True)

    _on_main_rank(prepare)
    dist_checkpointing.save(state, str(partial / STATE))
    _on_main_rank(publish)


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


# Every name that the metadata of a checkpoint of ours refers to.
_METADATA_NAMES = frozenset(
    {
        *(("torch", name) for name in ("Size", "float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8")),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        *(
            ("torch.distributed.checkpoint.planner", name)
            for name in (
                "SavePlan",
                "TensorWriteData",
                "WriteItem",
                "WriteItemType",
            )
        ),
    }
)


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the pickled metadata of torch's checkpoint format, and nothing else that a pickle can hold."""

    def find_class(self, module: str, name: str) -> Any:
        # Exact names only: `find_class` would follow a dotted one out of its module.
        if (module, name) not in _METADATA_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _refuse_foreign_pickle(path: Path) -> None:
    """torch unpickles a checkpoint's metadata without restriction, so it is read once under restriction first."""
    try:
        with path.open("rb") as file:
            _MetadataUnpickler(file).load()
    except Exception as error:  # a pickle can fail in any way
        raise UserError(
            f"{path}: {error}",
            "the metadata of a checkpoint holds only the types of torch's checkpoint format",
            "do not load a checkpoint from a source that you do not trust; delete it so that it is computed again",
        ) from error
