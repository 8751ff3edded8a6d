"""The metadata of a distributed checkpoint: a pickle, so that it is read under restriction.

torch unpickles it without restriction whenever it loads a checkpoint. It is read here first, and nothing is loaded that
does not pass.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from irpo_megatron.errors import UserError

METADATA = ".metadata"
EXTRA_STATE = "_extra_state"

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


def read_metadata(state: Path) -> Any:
    """torch's `Metadata` of a checkpoint's `state/` folder.

    Raises:
        UserError: there is none, it refers to anything that torch's checkpoint format does not know, or to a file
            outside the folder.
    """
    path = state / METADATA
    if not path.is_file():
        raise UserError(
            f"{state} is no complete Megatron checkpoint",
            "a checkpoint has config.json and state/ with its metadata",
            "delete the stage's directory so that it is computed again",
        )
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        for name, entry in metadata.state_dict_metadata.items():
            # torch unpickles what is no tensor without restriction. Transformer Engine's extra states are such, and are
            # never asked for.
            if type(entry) is not TensorStorageMetadata and EXTRA_STATE not in name:
                raise ValueError(f"{name} is no tensor")
        for stored in metadata.storage_data.values():
            if Path(stored.relative_path).name != stored.relative_path:
                raise ValueError(f"names the file {stored.relative_path}")
    except Exception as error:  # a pickle can fail in any way
        raise UserError(
            f"{path}: {error}",
            "the metadata of a checkpoint holds only the types of torch's checkpoint format, and files of its folder",
            "do not load a checkpoint from a source that you do not trust; delete it so that it is computed again",
        ) from error
    return metadata
