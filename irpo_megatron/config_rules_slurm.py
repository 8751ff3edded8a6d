"""The rules of a job of Slurm, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from irpo_megatron.config import Config

# What job script and steps say themselves; `export` would write the environment down.
_OWN_SBATCH = {
    "array",
    "chdir",
    "exclusive",
    "export",
    "export-file",
    "gpus-per-node",
    "job-name",
    "mem",
    "no-kill",
    "no-requeue",
    "nodes",
    "open-mode",
    "output",
    "requeue",
    "signal",
    "time",
    "wrap",
}
_OWN_SRUN = {
    "container-image",
    "container-mounts",
    "container-workdir",
    "cpus-per-task",
    "distribution",
    "export",
    "gpus-per-node",
    "kill-on-bad-exit",
    "mem",
    "mpi",
    "no-kill",
    "nodelist",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "overlap",
}


def slurm_rules(config: Config) -> Iterator[tuple[bool, str, str, str]]:
    """(broken?, value seen, rule, remedy) for every rule of `launch.slurm`."""
    if config.launch.launcher != "slurm":
        return
    slurm = config.launch.slurm
    yield (
        slurm is None,
        "launch.launcher = slurm, launch.slurm = null",
        "a job has nodes and a time limit",
        "set 'launch.slurm={nodes: 2, time_limit_minutes: 240}'",
    )
    assert slurm is not None
    yield (
        slurm.warning_minutes >= slurm.time_limit_minutes,
        f"launch.slurm.warning_minutes = {slurm.warning_minutes}, time_limit_minutes = {slurm.time_limit_minutes}",
        "the warning comes before the time limit",
        "raise time_limit_minutes, or lower warning_minutes",
    )
    gpus = slurm.nodes * slurm.gpus_per_node
    ranks = config.parallel.world_size
    yield (
        0 < gpus < ranks,
        f"launch.slurm has {slurm.nodes} x {slurm.gpus_per_node} GPUs, parallel.* makes {ranks} ranks",
        "a rank has a GPU of its own",
        f"raise nodes, or choose a layout of up to {gpus} ranks",
    )
    engine, workers = config.generation.gpus_a_worker, config.generation.workers
    yield (
        gpus > 0 and not _engines_fit(engine, workers, slurm.gpus_per_node, slurm.nodes),
        f"launch.slurm has {slurm.nodes} x {slurm.gpus_per_node} GPUs, generation.workers = {workers} of {engine} GPUs",
        "a node has the engines of all its workers, or one engine fills several nodes",
        "choose other generation.workers, or another tensor_parallel or pipeline_parallel",
    )
    yield (
        slurm.generate is not None and config.generation.python is not None,
        f"generation.python = {config.generation.python}, and launch.slurm.generate has an image",
        "stages in an image run by its own interpreter",
        "set generation.python=null; launch.slurm.generate.python names the one inside",
    )
    for key, given, own in (("sbatch", slurm.sbatch, _OWN_SBATCH), ("srun", slurm.srun, _OWN_SRUN)):
        clashing = [option for option in given if _is_one_of(option, own)]
        yield (
            bool(clashing),
            f"launch.slurm.{key} has {', '.join(clashing)}",
            "these lists are for options that are not given anyway; the environment reaches the job by itself, and "
            "nothing of it is ever written down",
            "take it out; `irpo config` prints the keys that there are",
        )


def _engines_fit(engine: int, workers: int, gpus_per_node: int, nodes: int) -> bool:
    if engine <= gpus_per_node:
        return engine * workers <= gpus_per_node
    return workers == 1 and engine % gpus_per_node == 0 and engine <= nodes * gpus_per_node


def _is_one_of(option: str, names: set[str]) -> bool:
    """Slurm takes the beginning of a name for the name."""
    beginning = option.removeprefix("--").partition("=")[0]
    return any(name.startswith(beginning) for name in names)
