"""The job script: what Slurm reserves, the driver, and what happens when it was asked to stop."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.config_launch import SlurmConfig


@dataclass(frozen=True)
class Job:
    """What is handed in: a run, or an array of runs that differ in one override."""

    name: str
    directory: Path
    """Where it starts; relative paths of the configuration are relative to it."""
    log: Path
    """In Slurm's pattern: `%j` is the number of the job."""
    command: Sequence[str]
    """The driver."""
    choices: Sequence[str] = ()
    """An array: the last argument of each of its drivers."""


def job_script(job: Job, slurm: SlurmConfig) -> str:
    """The script as a text that a person may read, change and hand in."""
    lines = ["#!/bin/bash", f"# Written by `irpo submit` for {job.name}; sbatch takes it again."]
    lines += [f"#SBATCH {option}" for option in _options(job, slurm)]
    command = [shlex.join(job.command)]
    if job.choices:
        lines += ["", f"choices=({shlex.join(job.choices)})"]
        command.append('"${choices[$SLURM_ARRAY_TASK_ID]}"')
    return "\n".join([*lines, "", f"{' '.join(command)} &", _WAIT, *_requeue(slurm), 'exit "$status"', ""])


def _options(job: Job, slurm: SlurmConfig) -> Iterator[str]:
    yield f"--job-name={job.name}"
    if job.choices:
        yield f"--array=0-{len(job.choices) - 1}"
    yield f"--chdir={_quoted(job.directory)}"
    yield f"--output={_quoted(job.log)}"
    yield "--open-mode=append"
    yield f"--nodes={slurm.nodes}"
    yield "--exclusive"
    yield "--mem=0"
    if slurm.gpus_per_node:
        yield f"--gpus-per-node={slurm.gpus_per_node}"
    yield f"--time={slurm.time_limit_minutes}"
    yield f"--signal=B:USR1@{60 * slurm.warning_minutes}"
    yield "--requeue" if slurm.restarts else "--no-requeue"
    yield "--no-kill"
    for name in ("partition", "account", "qos"):
        if (value := getattr(slurm, name)) is not None:
            yield f"--{name}={value}"
    yield from slurm.sbatch


def _quoted(path: Path) -> str:
    """A path as sbatch reads it in a script."""
    return f'"{path}"' if " " in str(path) else str(path)


_WAIT = """\
driver=$!
stop=
trap 'kill -USR1 "$driver"' USR1            # before the time limit: save, and go on in the next job
trap 'stop=yes; kill -TERM "$driver"' TERM  # irpo cancel: save, and end
while kill -0 "$driver" 2>/dev/null; do wait "$driver"; done  # a signal interrupts wait
wait "$driver"
status=$?
"""


def _requeue(slurm: SlurmConfig) -> Iterator[str]:
    if slurm.restarts:
        yield "# 75: the driver has saved, or lost nodes. 138: the signal came before it was there."
        yield 'if [ "$status" -eq 75 ] || [ "$status" -eq 138 ]; then'
        yield f'    if [ -z "$stop" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {slurm.restarts} ]; then'
        yield '        scontrol requeue "$SLURM_JOB_ID"'
        yield "    fi"
        yield "fi"
