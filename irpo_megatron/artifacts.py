"""Stage directories: they appear whole or not at all, and say what they were made from.

A stage works in `<name>.partial/`, where `plan.json` records what it is being made from and `progress.json` how far it
is; a killed stage finds its finished shards there and goes on. Committing hashes the files, writes `manifest.json` last
and renames the directory. A committed directory is skipped when it was made from the same inputs and the same part of
the configuration, and refused, with the differences named, when it was not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

from irpo_megatron.errors import UserError

MANIFEST = "manifest.json"
PLAN = "plan.json"
PROGRESS = "progress.json"
SECONDS = "seconds.json"
CLAIMS = "claims"
"""What the workers of a stage that samples tell each other (`irpo_megatron.claims`)."""
_PRUNED = "pruned"
_SCAFFOLDING = (MANIFEST, PLAN, PROGRESS, SECONDS)
_LEFTOVER = ".*.tmp"
"""What a writer that was killed leaves behind."""
_REMEMBERED = ".{}.sha256"
"""Beside a large file: its digest, computed while it was written."""

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage's output is a function of."""

    stage: str
    config: Json
    """The part of the configuration that the stage reads, without the keys that cannot change its result."""
    inputs: dict[str, str]
    """sha256 of each input: the digest of a stage directory's manifest, or of a folder's files."""

    def as_json(self) -> Json:
        return {"stage": self.stage, "config": self.config, "inputs": self.inputs}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage is, in its own unit (`problems`, `steps`, ...)."""

    done: int
    total: int
    unit: str


def partial_directory(directory: Path) -> Path:
    """Where a stage works before `directory` is committed."""
    return directory.with_name(f"{directory.name}.partial")


_REMEDY = "use another name=..., undo the change, or pass --redo to compute the stage again"


def open_stage(directory: Path, plan: Plan, *, redo: bool = False, remedy: str = _REMEDY) -> Path | None:
    """The directory to work in, or None where the stage is already committed from the same plan.

    Args:
        redo: Throw away what was made from another plan instead of refusing.
        remedy: What can be done about something that was made from another plan.

    Raises:
        UserError: the directory, finished or half-way, was made from another plan; a committed file is gone; or
            nothing can be written there.
    """
    partial = partial_directory(directory)
    for made, record in ((directory, MANIFEST), (partial, PLAN)):
        if not made.is_dir():
            continue
        differences = list(_differences(plan, made / record))
        if not differences:
            if (directory / MANIFEST).is_file():
                _check_files(directory)
                return None
            continue
        if not redo:
            raise UserError(
                f"{made} was made from something else: " + "; ".join(differences),
                "a stage is kept only while its inputs and its part of the configuration are the same",
                remedy,
            )
        # The record first: a directory that is half removed must not look whole.
        (made / record).unlink(missing_ok=True)
        shutil.rmtree(made)
    try:
        if directory.is_file():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(directory))
        partial.mkdir(parents=True, exist_ok=True)
        write_json(partial / PLAN, plan.as_json())
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or partial}: {error.strerror}",
            "the run directory must be writable",
            "choose another folder with runs=FOLDER, or free the disk",
        ) from error
    return partial


def commit_stage(directory: Path) -> None:
    """Turn the partial directory into `directory`: hash its files, write the manifest last, rename."""
    partial = partial_directory(directory)
    shutil.rmtree(partial / CLAIMS, ignore_errors=True)  # a worker that should have ended long ago may write there yet
    for leftover in partial.rglob(_LEFTOVER):
        leftover.unlink(missing_ok=True)  # of a writer that was killed
    scaffolding = {partial / name for name in _SCAFFOLDING} | set(partial.rglob(_REMEMBERED.format("*")))
    outputs = {
        str(path.relative_to(partial)): {
            "bytes": path.stat().st_size,
            "sha256": remembered_digest(path) or file_digest(path),
        }
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path not in scaffolding and partial / CLAIMS not in path.parents
    }
    plan = read_json(partial / PLAN)
    write_json(partial / MANIFEST, {**plan, "outputs": outputs, "seconds": round(seconds_so_far(partial), 3)})
    os.rename(partial, directory)
    # Only now: a stage killed before the rename still finds its plan, and commits again.
    for name in (PLAN, PROGRESS, SECONDS):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / CLAIMS, ignore_errors=True)
    for path in directory.rglob(_REMEMBERED.format("*")):
        path.unlink()


def manifest_digest(directory: Path) -> str:
    """sha256 over what a committed directory is and was made from; its wall time, and what was pruned, are left out.

    Raises:
        UserError: the directory is not committed.
    """
    manifest = read_manifest(directory)
    for name in ("seconds", _PRUNED):
        manifest.pop(name, None)
    return json_digest(manifest)


def prune(directory: Path, folders: Collection[str]) -> None:
    """Remove folders of a committed stage that nothing needs any more.

    The manifest goes on to say what they held, so that the stage and what was made from it stay what they are.

    Args:
        folders: Relative to `directory`.
    """
    manifest = read_manifest(directory)
    pruned = sorted({*manifest.get(_PRUNED, []), *folders})
    if pruned != manifest.get(_PRUNED, []):
        write_json(directory / MANIFEST, {**manifest, _PRUNED: pruned})
    for folder in pruned:  # those of an attempt that was killed, too
        shutil.rmtree(directory / folder, ignore_errors=True)


def is_pruned(directory: Path) -> bool:
    """Whether parts of a committed stage have been removed."""
    return bool(read_manifest(directory).get(_PRUNED))


def read_manifest(directory: Path) -> Json:
    """The manifest of a committed stage directory.

    Raises:
        UserError: the directory is not committed.
    """
    if not (directory / MANIFEST).is_file():
        raise UserError(
            f"{directory} is not complete",
            "a stage reads only committed directories of earlier stages",
            "run the earlier stage first, or `irpo run`, which runs what is missing",
        )
    return read_json(directory / MANIFEST)


def _differences(plan: Plan, record: Path) -> Iterator[str]:
    """What `plan` has otherwise than the plan recorded in a manifest or plan file."""
    if not record.is_file():
        # One with nothing but leftovers was killed while it was being opened or removed.
        if not all(fnmatch(path.name, _LEFTOVER) for path in record.parent.iterdir()):
            yield f"no {record.name}"
        return
    before, now = flatten(read_json(record)), flatten(plan.as_json())
    for key in sorted(before.keys() | now.keys()):
        if key.split(".")[0] not in ("stage", "config", "inputs"):
            continue
        if before.get(key) != now.get(key):
            yield f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _check_files(directory: Path) -> None:
    manifest = read_manifest(directory)
    pruned = tuple(f"{folder}/" for folder in manifest.get(_PRUNED, []))
    for name, entry in manifest["outputs"].items():
        if name.startswith(pruned):
            continue
        path = directory / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            raise UserError(
                f"{path} {'is missing' if size is None else f'has {size} bytes'}",
                f"its manifest says {entry['bytes']} bytes",
                f"restore the file, or delete {directory} so that it is computed again",
            )


def step_name(step: int) -> str:
    """How a checkpoint after `step` optimizer steps is called wherever it lies."""
    return f"step-{step:06d}"


def step_of(name: str) -> int:
    """The number of optimizer steps in a checkpoint's name."""
    return int(name.removeprefix("step-"))


def flatten(tree: Json, prefix: str = "") -> Json:
    """A nested mapping as one level with dotted keys."""
    flat: Json = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


class ProgressWriter:
    """Lets whoever watches see how far a stage is; writes at most twice a second."""

    def __init__(self, partial: Path, *, total: int, unit: str, done: int = 0) -> None:
        self._path = partial / PROGRESS
        self._total = total
        self._unit = unit
        self._written = 0.0
        self._done = done
        self._lock = threading.Lock()
        self.advance(0)

    def advance(self, count: int) -> None:
        """`count` more are done; from any thread."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._written >= 0.5 or self._done == self._total:
                self._written = now
                write_json(self._path, {"done": self._done, "total": self._total, "unit": self._unit})


def read_progress(partial: Path) -> Progress | None:
    """How far the stage that works in `partial` is; None before it has said so."""
    path = partial / PROGRESS
    return Progress(**read_json(path)) if path.is_file() else None


def read_json(path: Path) -> Json:
    """A JSON object from a file.

    Raises:
        UserError: the file is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: {error}", "the file holds one JSON object", "restore or delete it") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds a {type(value).__name__}", "the file holds one JSON object", "restore or delete it"
        )
    return value


def write_json(path: Path, value: Json) -> None:
    """Write a JSON object; the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def create_json(path: Path, value: Json) -> bool:
    """Write a JSON object whole, unless the file is there; of several processes that try, one succeeds.

    Returns:
        Whether it was this one.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return publish(temporary, path)


def publish(temporary: Path, path: Path) -> bool:
    """Give a finished file its name, unless another process has given that name to another: nothing is replaced.

    Returns:
        Whether it is this file that has the name now.

    Raises:
        UserError: the file system knows no hard links.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        # Looked at in any case: a network file system that repeats a request reports its own success as a failure.
        return os.path.samefile(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise
        raise UserError(
            f"cannot link {path}: {error.strerror}",
            "the file system of a run directory supports hard links, by which processes agree on who does what",
            "choose another folder with runs=FOLDER",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def json_digest(value: object) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def remember_digest(path: Path, sha256: str) -> None:
    """Note the digest of a large file that is whole, so that nobody has to read it again."""
    stat = path.stat()
    record = {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "sha256": sha256}
    write_json(path.with_name(_REMEMBERED.format(path.name)), record)


def remembered_digest(path: Path) -> str | None:
    """What `remember_digest` noted, if the file is still the one that it was."""
    note = path.with_name(_REMEMBERED.format(path.name))
    if not (path.is_file() and note.is_file()):
        return None
    stat, record = path.stat(), read_json(note)
    unchanged = (record["bytes"], record["modified_ns"]) == (stat.st_size, stat.st_mtime_ns)
    return str(record["sha256"]) if unchanged else None


@contextlib.contextmanager
def stage_clock(partial: Path) -> Iterator[None]:
    """Adds the wall time of this attempt to those before it, also when the attempt fails."""
    started = time.monotonic()

    def note() -> None:
        write_json(partial / SECONDS, {"seconds": seconds_so_far(partial) + time.monotonic() - started})

    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a disk that is full, say: what happened first is what matters
            note()
        raise
    note()


def seconds_so_far(partial: Path) -> float:
    """Wall time of the attempts at a stage so far (an attempt that was SIGKILLed is not counted)."""
    path = partial / SECONDS
    return float(read_json(path)["seconds"]) if path.is_file() else 0.0
