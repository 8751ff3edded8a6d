"""Conversions outside a run, each a stage of its own: atomic, resumable, with a manifest that holds checksums.

What needs torch is imported once the paths are known to be right: that takes seconds.
"""

from __future__ import annotations

from pathlib import Path

from irpo_megatron.artifacts import Plan, commit_stage, json_digest, open_stage, stage_clock
from irpo_megatron.config import ExportDtype
from irpo_megatron.conversion.progress import Progress
from irpo_megatron.errors import UserError


def hf_to_megatron(folder: Path, checkpoint: Path, *, tensor_parallel: int, threads: int, progress: Progress) -> None:
    """Write a Hugging Face folder as a Megatron checkpoint.

    Raises:
        UserError: the folder is damaged or of a family that is not supported, or `checkpoint` is something else.
    """
    plan = Plan(
        stage="hf-to-megatron", config={"tensor_parallel": tensor_parallel}, inputs={"folder": _known_by(folder)}
    )
    work = _open(checkpoint, plan)
    if work is None:
        return
    from irpo_megatron.conversion import import_stage

    with stage_clock(work):
        import_stage.convert(folder, work, tensor_parallel=tensor_parallel, threads=threads, progress=progress)
    commit_stage(checkpoint)


def megatron_to_hf(
    checkpoint: Path, base: Path, folder: Path, *, dtype: ExportDtype | None, threads: int, progress: Progress
) -> None:
    """Write a Megatron checkpoint of any layout as a Hugging Face folder, with what goes along from `base`.

    Raises:
        UserError: the checkpoint is damaged, or `folder` is something else.
    """
    plan = Plan(
        stage="megatron-to-hf",
        config={"dtype": dtype},
        inputs={"checkpoint": _known_by(checkpoint), "base": _known_by(base)},
    )
    work = _open(folder, plan)
    if work is None:
        return
    from irpo_megatron.conversion import export_stage

    with stage_clock(work):
        export_stage.convert(checkpoint, work, base=base, dtype=dtype, threads=threads, progress=progress)
    commit_stage(folder)


def _open(output: Path, plan: Plan) -> Path | None:
    """As in a run, but what an earlier attempt left of another source, since mended, is of no use."""
    return open_stage(output, plan, redo=not output.exists())


def _known_by(folder: Path) -> str:
    """What a folder is known by here: names, sizes and times. Reading 140 GB would take as long as converting them."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", "a conversion reads a folder on this machine", "correct the path")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return json_digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
