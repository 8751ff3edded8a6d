"""Whether the interpreter of the stages that sample is there and has what they need."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import irpo_megatron
from irpo_megatron.artifacts import Json
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.probe import describe_interpreter

# The first start of an interpreter on a network file system takes its time.
_PROBE_SECONDS = 120.0
_TENSORRT_LLM = "1.2"
_INSTALL = {
    "transformers": 'pip install "irpo-megatron[train]"',
    "tensorrt_llm": "name the interpreter of an environment with TensorRT-LLM in generation.python",
    "openai": 'pip install "irpo-megatron[server]"',
}


def check_generation_environment(generation: GenerationConfig) -> None:
    """The interpreter has this package and the backend's, in versions that go together.

    Raises:
        UserError: the interpreter does not exist or does not start, or a package is missing or of another version.
    """
    backend, python = generation.backend, generation.python
    found = describe_interpreter(backend) if python is None else _ask(python, backend)
    where = f"{python}" if python is not None else "this environment"
    if found["irpo_megatron"] != irpo_megatron.__version__:
        raise UserError(
            f"{where} has irpo-megatron {found['irpo_megatron']}, and this is {irpo_megatron.__version__}",
            "the driver and the stages that sample are of one version: they hand each other files",
            f"install {irpo_megatron.__version__} there",
        )
    missing = [name for name, version in found["packages"].items() if version is None]
    if missing:
        raise UserError(
            f"generation.backend = {backend}, and {where} lacks {', '.join(missing)}",
            "the stages that sample run by the interpreter in generation.python, where the backend is installed",
            _INSTALL[backend],
        )
    version = found["packages"].get("tensorrt_llm")
    if version is not None and not str(version).startswith(f"{_TENSORRT_LLM}."):
        raise UserError(
            f"{where} has TensorRT-LLM {version}",
            f"the backend is written to the interface of TensorRT-LLM {_TENSORRT_LLM}",
            f"install a release of {_TENSORRT_LLM} there",
        )


def _ask(python: Path, backend: str) -> Json:
    """What another interpreter has."""
    command = [str(python), "-m", "irpo_megatron.generation.probe", backend]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"generation.python = {python} does not start: {error}",
            "generation.python is the Python of an environment on this machine",
            "correct it, or set it to null for the environment of irpo itself",
        ) from error
    if done.returncode != 0:
        last = next(reversed(done.stderr.strip().splitlines()), f"status {done.returncode}")
        raise UserError(
            f"generation.python = {python} cannot import this package: {last}",
            "the environment of the stages that sample has irpo-megatron too; its base install needs no torch",
            f"{python} -m pip install irpo-megatron=={irpo_megatron.__version__}, or . from the repository",
        )
    answer: Json = json.loads(done.stdout.splitlines()[-1])
    return answer
