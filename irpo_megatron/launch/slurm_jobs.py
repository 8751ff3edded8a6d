"""What is asked of Slurm from outside a job: to take one, what became of it, to end it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.errors import UserError

_ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)


@dataclass(frozen=True)
class JobState:
    """A job as Slurm describes it."""

    state: str
    """Slurm's word, such as RUNNING."""
    details: str = ""
    """Elapsed and remaining time, and its nodes or what it waits for."""

    @property
    def is_pending(self) -> bool:
        return self.state == "PENDING"

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED


def has_slurm() -> bool:
    """Whether Slurm's commands are here."""
    return not _missing()


def require_slurm() -> None:
    """Slurm's commands are here.

    Raises:
        UserError: they are not.
    """
    if missing := _missing():
        raise UserError(
            f"not found: {', '.join(missing)}",
            "a job is handed in where Slurm's commands are, on a login node",
            "go there, or set launch.launcher=local for this machine alone",
        )


def _missing() -> list[str]:
    return [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]


def submit(script: Path) -> str:
    """Hand a job script in.

    Returns:
        The job's number.

    Raises:
        UserError: Slurm does not take it.
    """
    done = _slurm("sbatch", "--parsable", str(script))
    if done.returncode != 0:
        raise UserError(
            f"sbatch {script}: {_last_line(done.stderr)}",
            "Slurm takes a job whose nodes, limits and account the site grants",
            "correct launch.slurm; `sinfo` and `sacctmgr show associations` say what there is",
        )
    return done.stdout.strip().partition(";")[0]


def job_state(job: str) -> JobState | None:
    """What became of a job; None where Slurm has forgotten it.

    Raises:
        UserError: Slurm does not answer.
    """
    queued = _slurm("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%M|%L|%R")
    if queued.returncode == 0 and queued.stdout.strip():
        state, elapsed, left, where = queued.stdout.strip().splitlines()[0].split("|", 3)
        return JobState(state, f"{elapsed} elapsed, {left} left, {where}" if state == "RUNNING" else where)
    if queued.returncode != 0 and "Invalid job id" not in queued.stderr:
        raise UserError(
            f"squeue: {_last_line(queued.stderr)}",
            "Slurm's controller answers squeue",
            "try again later, or where it can be reached",
        )
    recorded = _slurm("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State,End")
    if recorded.returncode != 0 or not recorded.stdout.strip():  # many sites keep no accounts
        return None
    state, end = recorded.stdout.strip().splitlines()[-1].split("|", 1)
    return JobState(state.split()[0], f"at {end}")


def cancel(job: str, state: JobState) -> None:
    """End a job: where it runs, by the signal that lets its driver save.

    Raises:
        UserError: Slurm does not.
    """
    how = [] if state.is_pending else ["--batch", "--signal=TERM"]
    done = _slurm("scancel", *how, job)
    if done.returncode != 0:
        raise UserError(
            f"scancel {job}: {_last_line(done.stderr)}",
            "a job is cancelled by the user whose it is",
            "ask who submitted the run",
        )


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "no word on why")
