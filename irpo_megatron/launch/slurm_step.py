"""The command of a step: which nodes, how many tasks on each, in which image, and what every task runs."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.config import Config
from irpo_megatron.config_launch import ContainerConfig
from irpo_megatron.launch.protocol import OneProcess, Ranks
from irpo_megatron.requests import QuantiseRequest, Request, WorkerRequest

_PROCESS = "irpo_megatron.process"
_RANK = "irpo_megatron.launch.slurm_rank"
# Where a node is lost the other tasks go on, for as long as they have something to do.
_ALONE = ["--no-kill", "--kill-on-bad-exit=0", "--wait=0"]
# Ranks end within moments of one another. Without the second, srun would wait for those of a node that is lost.
_TOGETHER = ["--kill-on-bad-exit=1", "--wait=60"]


@dataclass(frozen=True)
class Allocation:
    """What a job has."""

    nodes: tuple[str, ...]
    """Their names; the driver runs on the first."""
    cpus: int
    """CPUs of a node, of the smallest."""


@dataclass(frozen=True)
class Workers:
    """Processes that sample, the same number on every node."""

    per_node: int
    gpus: int
    """GPUs of each one's engine; 0 where there are none, or the engine is elsewhere."""


@dataclass(frozen=True)
class Tasks:
    """How the processes of a stage lie on nodes."""

    count: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Nodes that they need."""
        return math.ceil(self.count / self.per_node)


def workers_of(config: Config) -> Workers:
    """The workers of a stage that samples."""
    assert config.launch.slurm is not None, "config_rules demands the section"
    has_gpus = config.launch.slurm.gpus_per_node > 0
    return Workers(config.generation.workers, config.generation.gpus_a_worker if has_gpus else 0)


def tasks_of(shape: OneProcess | Ranks | Workers, nodes: int, gpus_per_node: int) -> Tasks:
    """Ranks fill the GPUs of node after node; where there are none, they are spread over all nodes."""
    if isinstance(shape, OneProcess):
        return Tasks(1, 1)
    if isinstance(shape, Ranks):
        return Tasks(shape.count, min(shape.count, gpus_per_node or math.ceil(shape.count / nodes)))
    if shape.gpus > gpus_per_node:  # one engine, a task for each of its GPUs
        return Tasks(shape.gpus, gpus_per_node)
    return Tasks(nodes * shape.per_node, shape.per_node)


def step_command(
    config: Config,
    allocation: Allocation,
    shape: OneProcess | Ranks | Workers,
    module: str,
    request: Request,
    path: Path,
    *,
    port: int,
) -> list[str]:
    """The whole command that runs a stage as a step.

    Args:
        path: Where the request was written.
        port: Free on the first node, for the ranks to meet at.
    """
    slurm = config.launch.slurm
    assert slurm is not None, "config_rules demands the section"
    tasks = tasks_of(shape, len(allocation.nodes), slurm.gpus_per_node)
    container = slurm.generate if isinstance(request, WorkerRequest | QuantiseRequest) else slurm.train
    command = [
        "srun",
        "--export=ALL",
        "--overlap",  # a step that Slurm has not cleared away yet does not hold up the next
        f"--nodes={tasks.nodes}",
        f"--nodelist={','.join(allocation.nodes[: tasks.nodes])}",
        f"--ntasks={tasks.count}",
        f"--ntasks-per-node={tasks.per_node}",
        f"--cpus-per-task={max(1, allocation.cpus // tasks.per_node)}",
        "--mem=0",
        "--distribution=block",  # so that tensor-parallel ranks share a node
        *([f"--gpus-per-node={slurm.gpus_per_node}"] if slurm.gpus_per_node else []),
        *(_ALONE if isinstance(shape, Workers) else _TOGETHER),
        *(_container_arguments(container, config.runs) if container is not None else []),
    ]
    over_nodes = isinstance(shape, Workers) and shape.gpus > slurm.gpus_per_node
    if isinstance(shape, Workers):
        command += _logs_of_workers(path)
    if over_nodes:
        command.append("--mpi=pmix")
    command += slurm.srun
    if over_nodes:
        command.append("trtllm-llmapi-launch")
    command += [_interpreter(container, request), "-m"]
    if isinstance(shape, Ranks):
        command += [_RANK, "ranks", str(port)]
    elif isinstance(shape, Workers) and not over_nodes:
        command += [_RANK, "workers", str(shape.gpus)]
    else:
        command.append(_PROCESS)
    return [*command, module, str(path)]


def _logs_of_workers(path: Path) -> list[str]:
    """A file for each; Slurm puts the number of the task in."""
    stem = path.name.removesuffix("s.request.json")
    return [f"--output={path.with_name(stem)}-%t.log", "--open-mode=append"]


def _interpreter(container: ContainerConfig | None, request: Request) -> str:
    return container.python if container is not None else str(request.python or sys.executable)


def _container_arguments(container: ContainerConfig, runs: Path) -> list[str]:
    """Every path in a request is one of this machine, so what lies there is mounted at the same place."""
    here = os.getcwd()
    folders = dict.fromkeys([here, str(runs.absolute())])
    mounts = [*(f"{folder}:{folder}" for folder in folders), *container.bindings]
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-workdir={here}",
    ]
