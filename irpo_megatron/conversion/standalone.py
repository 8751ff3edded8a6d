"""Conversions outside a run, each a stage of its own: atomic, resumable, with a manifest that holds checksums.

What needs torch is imported once the paths are known to be right: that takes seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from irpo_megatron.artifacts import (
    PLAN,
    Plan,
    commit_stage,
    file_digest,
    json_digest,
    open_stage,
    partial_directory,
    read_json,
    read_manifest,
    stage_clock,
)
from irpo_megatron.config import ExportDtype
from irpo_megatron.conversion.progress import Progress
from irpo_megatron.disk import full_disk_said
from irpo_megatron.errors import UserError

# Raised whenever other bytes are written for the same input, so that no half of the old goes with a half of the new.
_VERSION = 1


def hf_to_megatron(folder: Path, checkpoint: Path, *, tensor_parallel: int, threads: int, progress: Progress) -> None:
    """Write a Hugging Face folder as a Megatron checkpoint.

    Raises:
        UserError: the folder is damaged or of a family that is not supported, or `checkpoint` is something else.
    """
    plan = Plan(
        stage="hf-to-megatron",
        config={"tensor_parallel": tensor_parallel, "version": _VERSION},
        inputs={"folder": _known_by(folder, output=checkpoint)},
    )
    with _stage(checkpoint, plan) as work:
        if work is not None:
            from irpo_megatron.conversion import import_stage

            import_stage.convert(folder, work, tensor_parallel=tensor_parallel, threads=threads, progress=progress)


def megatron_to_hf(
    checkpoint: Path, base: Path, folder: Path, *, dtype: ExportDtype | None, threads: int, progress: Progress
) -> None:
    """Write a Megatron checkpoint of any layout as a Hugging Face folder, with what goes along from `base`.

    Raises:
        UserError: the checkpoint is damaged, or `folder` is something else.
    """
    plan = Plan(
        stage="megatron-to-hf",
        config={"dtype": dtype, "version": _VERSION},
        inputs={"checkpoint": _known_by(checkpoint, output=folder), "base": _known_by(base, output=folder)},
    )
    with _stage(folder, plan) as work:
        if work is not None:
            from irpo_megatron.conversion import export_stage

            export_stage.convert(checkpoint, work, base=base, dtype=dtype, threads=threads, progress=progress)


def check_files(folder: Path) -> int:
    """Read every file that a conversion wrote; how many there are.

    Raises:
        UserError: one is missing or is not what it was, or there is no manifest.
    """
    outputs = read_manifest(folder)["outputs"]
    for name, entry in outputs.items():
        path = folder / name
        is_there = path.resolve().is_relative_to(folder.resolve()) and path.is_file()
        found = file_digest(path) if is_there else None
        if found != entry["sha256"]:
            raise UserError(
                f"{path} {'has other bytes than when it was written' if is_there else 'is not there'}",
                "files are what the manifest says",
                "convert again: the disk, or somebody, has changed it",
            )
    return len(outputs)


@contextlib.contextmanager
def _stage(output: Path, plan: Plan) -> Iterator[Path | None]:
    """As in a run, but that what an earlier attempt left of another source, since mended, is of no use."""
    output = output.resolve()
    record = partial_directory(output) / PLAN
    ours = record.is_file() and read_json(record).get("stage") == plan.stage
    remedy = "write to another folder, or remove this one"
    work = open_stage(output, plan, redo=ours and not output.exists(), remedy=remedy)
    if work is None:
        yield None
        return
    with _alone(work), full_disk_said(work):
        with stage_clock(work):
            yield work
        commit_stage(output)


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Two processes never write one output."""
    folder = os.open(work, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing {work}", "an output has one writer", "wait for it, or stop it"
        ) from error
    finally:
        os.close(folder)


def _known_by(folder: Path, *, output: Path) -> str:
    """What a folder is known by here: names, sizes and times. Reading 140 GB would take as long as converting them."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", "a conversion reads a folder on this machine", "correct the path")
    if output.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(output.resolve()):
        raise UserError(
            f"{output} is to be written from {folder}", "neither lies within the other", "write to a folder of its own"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return json_digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
