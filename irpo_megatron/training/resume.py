"""Where training saves: the candidates that may become M_t, and the point to go on from."""

from __future__ import annotations

from pathlib import Path


def candidate_steps(steps: int, candidates: int) -> list[int]:
    """After how many optimizer steps a candidate is saved: evenly spread, the last one at the end.

    Fewer than `candidates` where there are fewer steps.
    """
    return sorted({max(1, round(steps * k / candidates)) for k in range(1, candidates + 1)})


def checkpoint_path(output: Path, step: int) -> Path:
    """The Megatron checkpoint (weights only) after `step` optimizer steps."""
    return output / "checkpoints" / _name(step)


def resume_path(output: Path, step: int) -> Path:
    """The full training state after `step` optimizer steps; gone when the stage is finished."""
    return output / "resume" / _name(step)


def latest_resume_point(output: Path) -> Path | None:
    """The last complete training state, or None."""
    points = [path for path in (output / "resume").glob("step-*") if path.suffix == ""]
    return max(points, key=step_of, default=None)


def step_of(path: Path) -> int:
    """The number of optimizer steps in a folder's name."""
    return int(path.name.removeprefix("step-"))


def _name(step: int) -> str:
    return f"step-{step:06d}"
