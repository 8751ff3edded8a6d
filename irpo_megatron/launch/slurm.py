"""Stages as steps of the job of Slurm that the driver is in; where a node is lost, the step again on the others.

The driver runs on the job's first node, so a port that is free here is free where rank 0 will be.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from irpo_megatron.claims import forget_attempt, is_all_there, raise_refusal
from irpo_megatron.config import Config
from irpo_megatron.errors import Interrupted, StageError, UserError
from irpo_megatron.launch.protocol import WORKER, OneProcess, Ranks, Shape
from irpo_megatron.launch.slurm_step import Allocation, Workers, step_command, tasks_of, workers_of
from irpo_megatron.launch.supervision import supervise
from irpo_megatron.requests import Request, WorkerRequest

# On SIGTERM srun ends its step: it waits for Slurm's KillWait, 30 seconds unless the site says otherwise.
_GRACE_SECONDS = 90.0
# How long a node may take to start nothing.
_ANSWER_SECONDS = 60.0
# Below the ports that Linux hands out for outgoing connections.
_PORTS = range(20000, 32768)


class SlurmLauncher:
    """The protocol `Launcher` in a job of Slurm."""

    def __init__(self, config: Config) -> None:
        """
        Raises:
            UserError: this process is in no job.
        """
        self._config = config
        self._allocation = current_allocation(os.environ)

    def run(
        self, module: str, request: Request, path: Path, *, shape: Shape, log: Path, watch: Callable[[], None]
    ) -> None:
        """See the protocol."""
        self._insist(lambda: self._step(module, request, path, shape=shape, log=log, watch=watch), log.stem, shape)

    def sample(
        self, request: WorkerRequest, path: Path, *, logs: Path, watch: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        """See the protocol: `generation.workers` of them on each node."""
        shape, partial = workers_of(self._config), request.output

        def attempt() -> None:
            forget_attempt(partial)
            try:
                log = logs.with_name(f"{logs.name}-workers.log")
                self._step(WORKER, request, path, shape=shape, log=log, watch=watch)
            except StageError as failure:
                raise_refusal(partial)
                if not is_all_there(partial):
                    raise
                say(f"{failure}\n  the others have done its work")

        self._insist(attempt, logs.name, shape)

    def _step(
        self,
        module: str,
        request: Request,
        path: Path,
        *,
        shape: OneProcess | Ranks | Workers,
        log: Path,
        watch: Callable[[], None],
    ) -> None:
        """Run one step, and leave nothing of it behind."""
        command = step_command(
            self._config, self._allocation, shape, module, request, path.absolute(), port=_free_port()
        )
        try:
            supervise(
                command,
                path,
                threads=self._config.launch.threads,
                log=log,
                watch=watch,
                grace=_GRACE_SECONDS,
                grace_of_listeners=_GRACE_SECONDS,
            )
        except BaseException:
            _end_steps()
            raise

    def _insist(self, attempt: Callable[[], None], stage: str, shape: OneProcess | Ranks | Workers) -> None:
        """Try again where nodes were lost and the others suffice."""
        while True:
            try:
                attempt()
                return
            except StageError:
                if not self._leave_lost_nodes(stage, shape):
                    raise

    def _leave_lost_nodes(self, stage: str, shape: OneProcess | Ranks | Workers) -> bool:
        """Go on without the nodes that no longer answer; whether there were any.

        Raises:
            Interrupted: those that are left are too few.
        """
        nodes = self._allocation.nodes
        lost = lost_nodes(nodes)
        if not lost:
            return False
        left = tuple(node for node in nodes if node not in lost)
        self._allocation = Allocation(left, self._allocation.cpus)
        slurm = self._config.launch.slurm
        assert slurm is not None
        if not left or tasks_of(shape, len(left), slurm.gpus_per_node).nodes > len(left):
            raise Interrupted(f"{stage} lost {', '.join(lost)}, and needs more nodes than are left")
        print(f"{stage} lost {', '.join(lost)}: it is tried again on {', '.join(left)}", file=sys.stderr, flush=True)
        return True


def current_allocation(environment: Mapping[str, str]) -> Allocation:
    """The job that this process is in.

    Raises:
        UserError: it is in none.
    """
    if "SLURM_JOB_NODELIST" not in environment or shutil.which("srun") is None:
        raise UserError(
            "launch.launcher = slurm, outside of a job",
            "the driver runs in the job whose steps the stages are",
            "irpo submit, or launch.launcher=local for this machine alone",
        )
    command = ["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # `16(x3),8`: three nodes with 16 CPUs and one with 8.
    counts = re.sub(r"\(x\d+\)", "", environment["SLURM_JOB_CPUS_PER_NODE"])
    return Allocation(tuple(names), min(map(int, counts.split(","))))


def lost_nodes(nodes: tuple[str, ...]) -> list[str]:
    """Those that start nothing any more: asked at once and all together, since Slurm itself takes minutes to say so."""
    options = ["--export=ALL", "--overlap", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=0"]
    probes = {
        node: subprocess.Popen(
            ["srun", *options, f"--nodelist={node}", "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for node in nodes
    }
    deadline = time.monotonic() + _ANSWER_SECONDS
    try:
        return [node for node, probe in probes.items() if not _succeeds(probe, deadline)]
    finally:
        for probe in probes.values():
            probe.kill()
            probe.wait()


def _succeeds(probe: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        return probe.wait(timeout=max(0.0, deadline - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        return False


def _end_steps() -> None:
    """End what is left of this job's steps: where srun was killed, its tasks are not."""
    job = os.environ["SLURM_JOB_ID"]
    command = ["squeue", "--steps", "--noheader", f"--jobs={job}", "--format=%i"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    steps = [step for step in listed if step.rpartition(".")[2].isdecimal()]
    if steps:
        subprocess.run(["scancel", "--signal=KILL", *steps], stderr=subprocess.DEVNULL, check=False)


def _free_port() -> int:
    """A port of this machine that nobody listens at."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("a machine without a free port")
