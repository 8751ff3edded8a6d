"""The launcher that a configuration names."""

from __future__ import annotations

from irpo_megatron.config import Config
from irpo_megatron.launch.local import LocalLauncher
from irpo_megatron.launch.protocol import Launcher
from irpo_megatron.launch.slurm import SlurmLauncher


def launcher_of(config: Config) -> Launcher:
    """What starts the stages of a run.

    Raises:
        UserError: launcher `slurm` outside of a job.
    """
    if config.launch.launcher == "slurm":
        return SlurmLauncher(config)
    return LocalLauncher(config)
