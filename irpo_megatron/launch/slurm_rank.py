"""A task of a Slurm step on its way to a stage's process: who it is, in the words that torch and CUDA know.

    srun ... python -m irpo_megatron.launch.slurm_rank ranks PORT MODULE REQUEST.json
    srun ... python -m irpo_megatron.launch.slurm_rank workers GPUS MODULE REQUEST.json

It runs inside the task, in the container where there is one, and knows nothing but Slurm's own variables.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from irpo_megatron.launch.devices import visible_devices
from irpo_megatron.rank_log import WORKER

# `node[07-12,20]-ib[0-1],other`: the first entry, and each bracket in it.
_FIRST_ENTRY = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")
_BRACKET = re.compile(r"\[([^\],-]+)[^\]]*\]")


def rank_variables(slurm: Mapping[str, str], *, port: int) -> dict[str, str]:
    """What torch.distributed reads, for a task that is a rank of a world.

    Args:
        slurm: The environment of the task.
        port: Free on the first host of the step.
    """
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": first_host(slurm["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(port),
    }


def worker_variables(slurm: Mapping[str, str], *, gpus: int) -> dict[str, str]:
    """The GPUs of a task that works alone: of those that the node has for the step, its own group.

    Args:
        slurm: The environment of the task.
        gpus: Size of a group; the tasks of a node have one each, in their order. 0 leaves the GPUs alone.
    """
    devices = visible_devices(slurm)
    if not devices or gpus == 0:
        return {}
    first = int(slurm["SLURM_LOCALID"]) * gpus
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[first : first + gpus])}


def first_host(hosts: str) -> str:
    """The first host of a list in Slurm's notation."""
    entry = _FIRST_ENTRY.match(hosts)
    assert entry is not None, f"a step runs somewhere, not on '{hosts}'"
    return _BRACKET.sub(r"\1", entry[0])


def main(kind: str, number: str, module: str, request: str) -> None:
    """Become the stage's process."""
    if kind == "ranks":
        os.environ |= rank_variables(os.environ, port=int(number))
    else:
        os.environ |= {WORKER: os.environ["SLURM_PROCID"], **worker_variables(os.environ, gpus=int(number))}
    os.execv(sys.executable, [sys.executable, "-m", "irpo_megatron.process", module, request])


if __name__ == "__main__":
    main(*sys.argv[1:])
