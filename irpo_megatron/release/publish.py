"""A folder that appears whole or not at all, and is known by the content of its files alone.

It grows in `<name>.partial/`, file by file, each checked while it is copied, and is renamed when it is complete.
Nothing else is written there: what is published holds no trace of how it was made. So a second start compares contents,
both to go on where the first was stopped and to see that there is nothing left to do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from irpo_megatron.artifacts import file_digest, partial_directory
from irpo_megatron.disk import full_disk_said, require_room
from irpo_megatron.errors import UserError

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the folder, known before it is there."""

    name: str
    """Relative to the folder, with `/`."""
    source: Path | bytes
    """Where it is copied from, or what it holds."""
    size: int
    """In bytes."""
    sha256: str

    @classmethod
    def holding(cls, name: str, content: bytes) -> File:
        """A file that is made here."""
        return cls(name=name, source=content, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def publish(folder: Path, files: Sequence[File], *, told: Callable[[File], None] = lambda file: None) -> None:
    """Make `folder` hold these files and nothing else; where it does already, only compare.

    Args:
        told: Called for each file that was copied, once it is whole.

    Raises:
        UserError: `folder` is something else, a source is not what it should be, or nothing can be written there.
    """
    if folder.exists() or folder.is_symlink():
        _require_same(folder, files)
        return
    partial = partial_directory(folder)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _require_nothing_else(partial, files)
        missing = [file for file in files if not _is_there(partial, file)]
        require_room(sum(file.size for file in missing), partial)
        with full_disk_said(partial):
            for file in missing:
                _write(partial, file)
                told(file)
        os.rename(partial, folder)
    except OSError as error:
        raise UserError(
            f"{error.filename or partial}: {error.strerror}",
            "a release is written beside the folder that it becomes",
            "choose another folder, or see to it that this one can be written",
        ) from error


def _require_same(folder: Path, files: Sequence[File]) -> None:
    for what in _differences(folder, files):
        raise UserError(
            f"{folder} is there and is not this release: {what}",
            "a release is never written over something else",
            "choose another folder, or remove that one",
        )


def _differences(folder: Path, files: Sequence[File]) -> Iterator[str]:
    if not folder.is_dir():
        yield "it is no folder"
        return
    for file in files:
        if not (folder / file.name).is_file():
            yield f"it has no {file.name}"
        elif not _is_there(folder, file):
            yield f"its {file.name} is another"
    for name in _others(folder, {file.name for file in files}):
        yield f"it also has {name}"


def _others(folder: Path, names: set[str]) -> Iterator[str]:
    """What lies in a folder, at any depth, and is none of these files, nor a folder that holds one; no link is."""
    ours = names.union(*({str(parent) for parent in PurePosixPath(name).parents} for name in names))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in ours or path.is_symlink():
            yield name


def _require_nothing_else(partial: Path, files: Sequence[File]) -> None:
    """What a killed attempt at this release left may stay; what is somebody else's is not ours to remove."""
    leftovers = {_temporary(file.name) for file in files}
    for name in _others(partial, leftovers | {file.name for file in files}):
        raise UserError(
            f"{partial} holds {name}, which is no file of this release",
            "what an earlier attempt has finished is taken over, and nothing else is",
            f"remove {partial}",
        )
    for name in leftovers:
        (partial / name).unlink(missing_ok=True)


def _temporary(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f".{path.name}.tmp"))


def _is_there(folder: Path, file: File) -> bool:
    path = folder / file.name
    whole = path.is_file() and path.stat().st_size == file.size
    return whole and not path.is_symlink() and file_digest(path) == file.sha256


def _write(partial: Path, file: File) -> None:
    """Write a file, hashing what is written; it appears whole and right, or not at all."""
    temporary = partial / _temporary(file.name)
    temporary.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with temporary.open("wb") as target:
        for block in _blocks(file.source):
            digest.update(block)
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    if digest.hexdigest() != file.sha256:
        temporary.unlink()
        assert isinstance(file.source, Path), "what is made here is what it was made as"
        raise UserError(
            f"{file.source} is not the file that its stage wrote: sha256 {digest.hexdigest()}",
            f"its manifest says {file.sha256}",
            "restore the file, or delete its directory and compute that stage again",
        )
    os.replace(temporary, partial / file.name)


def _blocks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block
