"""Where training saves: the candidates that may become M_t, and the point to go on from."""

from __future__ import annotations

import shutil
from pathlib import Path

from irpo_megatron.artifacts import step_name, step_of


def candidate_steps(steps: int, candidates: int) -> list[int]:
    """After how many optimizer steps a candidate is saved: evenly spread, the last one at the end.

    Fewer than `candidates` where there are fewer steps.
    """
    return sorted({max(1, round(steps * k / candidates)) for k in range(1, candidates + 1)})


def checkpoint_path(output: Path, step: int) -> Path:
    """The Megatron checkpoint (weights only) after `step` optimizer steps."""
    return output / "checkpoints" / step_name(step)


def resume_path(output: Path, step: int) -> Path:
    """The full training state after `step` optimizer steps; gone when the stage is finished."""
    return output / "resume" / step_name(step)


def resume_points(output: Path) -> list[Path]:
    """The complete training states, oldest first."""
    points = [path for path in (output / "resume").glob("step-*") if path.suffix == ""]
    return sorted(points, key=lambda point: step_of(point.name))


def latest_resume_point(output: Path) -> Path | None:
    """The last complete training state, or None."""
    points = resume_points(output)
    return points[-1] if points else None


def drop_older_resume_points(output: Path, *, keep: int) -> None:
    """Keep the last `keep` training states."""
    leftovers = output / "resume.leftovers"
    for point in resume_points(output)[:-keep]:
        # Renamed first, so that a half-deleted point is never taken for a whole one.
        leftovers.mkdir(exist_ok=True)
        point.rename(leftovers / point.name)
    shutil.rmtree(leftovers, ignore_errors=True)


def drop_resume_points(output: Path, *, all_of_them: bool) -> None:
    """Remove what is needed no more: leftovers of an attempt killed while it removed them, or every point."""
    points, leftovers = output / "resume", output / "resume.leftovers"
    shutil.rmtree(leftovers, ignore_errors=True)
    if all_of_them and points.exists():
        points.rename(leftovers)
        shutil.rmtree(leftovers)
