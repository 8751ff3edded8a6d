"""The section `launch` of the configuration: where the stages' processes run, and how they are started."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from irpo_megatron.config_section import NonNegativeInt, PositiveFloat, PositiveInt, Section

# What a line of a job script, or an argument of srun, is made of.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._,@+-]+$")]
_Option = Annotated[str, Field(pattern=r"^--[a-z][a-z-]*(=[^\x00-\x1f\x7f]*)?$")]
_Mount = Annotated[str, Field(pattern=r"^/[^:,\s]*(:/[^:,\s]*(:[a-z+]+)?)?$")]


class ContainerConfig(Section):
    """A container image that stages run in (Pyxis and Enroot)."""

    image: Annotated[str, Field(pattern=r"^[^\s,]+$")]
    """A squashfs file that every node sees, or an image of a registry as Enroot writes it: `HOST#OWNER/NAME:TAG`."""
    mounts: tuple[_Mount, ...] = ()
    """`PATH`, `SOURCE:TARGET` or `SOURCE:TARGET:FLAGS`; `runs` and the working directory are mounted in any case."""
    python: str = "python3"
    """The interpreter inside, which has this package."""

    @property
    def bindings(self) -> list[str]:
        """The mounts with their targets: a path alone is mounted at its own place."""
        return [mount if ":" in mount else f"{mount}:{mount}" for mount in self.mounts]


class SlurmConfig(Section):
    """A job of Slurm: whole nodes, the driver on the first of them, each stage a step."""

    nodes: PositiveInt
    """Nodes of the job."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs of a node, a rank of training each; 0 on a cluster of CPUs, where ranks are spread over all nodes."""
    time_limit_minutes: PositiveInt
    """The job's time limit."""
    warning_minutes: PositiveInt = 15
    """So long before the limit a stage saves and the job ends: a training step and a checkpoint must fit in."""
    restarts: NonNegativeInt = 20
    """How often the job is put back into the queue by itself, at its limit and when nodes fail; 0 never does."""
    partition: _Name | None = None
    """Partition, or several with commas; null is the site's default."""
    account: _Name | None = None
    """Account that is charged; null is the user's default."""
    qos: _Name | None = None
    """Quality of service; null is the site's default."""
    train: ContainerConfig | None = None
    """The image of every other process; null runs them by the interpreter that runs `irpo`."""
    generate: ContainerConfig | None = None
    """The image of what samples, and makes FP8 copies for it; null runs that by `generation.python`."""
    sbatch: tuple[_Option, ...] = ()
    """Further options of the job, each a line of the job script: `--constraint=h100`."""
    srun: tuple[_Option, ...] = ()
    """Further arguments of every step: `--cpu-bind=cores`."""


class LaunchConfig(Section):
    """How the stages' processes are started."""

    threads: PositiveInt = 2
    """CPU threads a process; float sums depend on it, so it is part of the configuration and not of the machine."""
    stall_minutes: PositiveFloat = 30.0
    """A training or reference pass in which nothing moves for so long is ended, every rank's stack in the log."""
    launcher: Literal["local", "slurm"] = "local"
    """`local`: on this machine, several ranks under torchrun. `slurm`: in the job that `irpo submit` hands in."""
    slurm: SlurmConfig | None = None
    """Launcher `slurm`: the job."""
