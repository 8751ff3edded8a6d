"""The container images that stages run in: which there are, and what they will see."""

from __future__ import annotations

from pathlib import Path

from irpo_megatron.config import Config
from irpo_megatron.config_launch import ContainerConfig
from irpo_megatron.errors import UserError


def images_of(config: Config) -> dict[str, ContainerConfig]:
    """The images that this run's stages are in, by the name of their key in `launch.slurm`."""
    slurm = config.launch.slurm
    if slurm is None or config.launch.launcher != "slurm":
        return {}
    images = {"train": slurm.train, "generate": slurm.generate}
    return {kind: container for kind, container in images.items() if container is not None}


def check_containers(config: Config) -> None:
    """Images and the sources of mounts are there, and the stages find in them what the configuration names.

    Raises:
        UserError: the first of these that does not hold.
    """
    for kind, container in images_of(config).items():
        key = f"launch.slurm.{kind}"
        if container.image.startswith(("/", "./")) and not Path(container.image).is_file():
            raise UserError(
                f"{key}.image = {container.image}, which is not there",
                "an image that is given as a path is a squashfs file that every node sees",
                "correct the path, or make it with enroot import",
            )
        if absent := [binding for binding in container.bindings if not Path(binding.partition(":")[0]).exists()]:
            raise UserError(
                f"{key}.mounts has {', '.join(absent)}, which is not there",
                "what is mounted in a container lies on this machine and on every node",
                "correct the path",
            )
        _check_inputs(config, container, key)


def _check_inputs(config: Config, container: ContainerConfig, key: str) -> None:
    """A request has the paths of this machine: what lies elsewhere in the container is not found."""
    split = [binding.split(":") for binding in container.bindings]
    seen = [Path.cwd(), config.runs.absolute(), *(Path(source) for source, target, *_ in split if source == target)]
    for name, value in (
        ("model.path", config.model.path),
        ("data.train", config.data.train),
        ("data.test", config.data.test),
    ):
        path = Path(value or "").absolute()
        if path.exists() and not any(map(path.is_relative_to, seen)):
            raise UserError(
                f"{name} = {value}, and {key}.mounts does not have it",
                "a stage in a container sees its mounts, runs and the working directory, each at its own path",
                f"add {path if path.is_dir() else path.parent} to {key}.mounts",
            )
