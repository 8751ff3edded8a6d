"""The commands that speak to Slurm: `irpo submit` and `irpo cancel`, and the line of `irpo status`."""

from __future__ import annotations

from pathlib import Path

from irpo_megatron.errors import UserError
from irpo_megatron.launch.slurm_jobs import JobState, cancel, has_slurm, job_state, require_slurm
from irpo_megatron.submission import submitted_job


def job_line(run_dir: Path) -> str | None:
    """What `irpo status` says of the job; None for a run that was not handed in."""
    job = submitted_job(run_dir)
    if job is None:
        return None
    return f"job {job}: {_described(job_state(job)) if has_slurm() else 'Slurm is not here to be asked'}"


def cancel_run(run_dir: Path) -> str:
    """End the job of a run; what was done is kept, and the run can be handed in again.

    Returns:
        What is said of it.

    Raises:
        UserError: the run was not handed in, or Slurm does not end it.
    """
    job = submitted_job(run_dir)
    if job is None:
        raise UserError(
            f"{run_dir} was not handed in to Slurm",
            "irpo submit leaves slurm.json in the run directory",
            "name the directory of a submitted run; a run on this machine is stopped by Ctrl-C",
        )
    require_slurm()
    state = job_state(job)
    if state is None or state.has_ended:
        return f"job {job} has ended: {_described(state)}"
    cancel(job, state)
    return f"job {job} is cancelled" if state.is_pending else f"job {job} saves its work and ends"


def _described(state: JobState | None) -> str:
    if state is None:
        return "Slurm no longer knows it"
    return f"{state.state}, {state.details}" if state.details else state.state
