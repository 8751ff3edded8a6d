"""The model's own files, as the run's `convert` stage committed them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from irpo_megatron.artifacts import MANIFEST, Json, file_digest, read_json, read_manifest
from irpo_megatron.errors import UserError
from irpo_megatron.model_files import is_model_file
from irpo_megatron.release.publish import File

_PLACE_KEYS = ("_name_or_path", "name_or_path")
"""Where transformers notes which folder it loaded from; it writes them over when it loads."""


def checkpoint_files(directory: Path) -> list[File]:
    """The files of a committed `checkpoint-hf/`, each to be copied byte for byte.

    One thing is changed, and only where it is there: a JSON file that names a folder of this machine loses that key.

    Raises:
        UserError: the directory is not committed, or holds what its manifest does not describe.
    """
    files = []
    for name, entry in read_manifest(directory)["outputs"].items():
        path = directory / name
        if not is_model_file(name):
            raise UserError(
                f"{directory / MANIFEST} names the file '{name}'",
                "a release holds safetensors, their index, configurations, tokenizer and chat templates",
                f"delete {directory} so that it is computed again",
            )
        if path.resolve() != directory.resolve() / name:
            raise UserError(
                f"{path} is a link to {path.resolve()}",
                "a release holds a checkpoint's own files",
                f"put the file itself there, or delete {directory} so that it is computed again",
            )
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            raise _damaged(path, "is missing" if size is None else f"has {size} bytes", f"{entry['bytes']} bytes")
        file = File(name=name, source=path, size=size, sha256=entry["sha256"])
        files.append(_without_places(file, path) if path.suffix == ".json" else file)
    return files


def _without_places(file: File, path: Path) -> File:
    """The file itself, or what is to be published of it."""
    written = path.read_bytes()
    if not any(f'"{key}"'.encode() in written for key in _PLACE_KEYS):
        return file
    if file_digest(path) != file.sha256:  # it is read here, so it is checked here
        raise _damaged(path, "has another sha256", file.sha256)
    content = read_json(path)
    places = list(_places(content))
    if not places:
        return file
    kept = {key: value for key, value in content.items() if key not in places}
    return File.holding(file.name, (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode())


def _places(content: Json) -> Iterator[str]:
    """Keys that hold a path of this machine; the name of a model on the Hub is none."""
    for key in _PLACE_KEYS:
        value = content.get(key)
        if isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", ".", "\\")) or ":" in value):
            yield key


def _damaged(path: Path, what: str, rule: str) -> UserError:
    return UserError(
        f"{path} {what}",
        f"its manifest says {rule}",
        f"restore the file, or delete {path.parent} so that it is computed again",
    )
