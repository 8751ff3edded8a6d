"""Whether the interpreter of the stages that sample is there and has what they need."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import irpo_megatron
from irpo_megatron.artifacts import Json
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.probe import PACKAGES, describe_interpreter
from irpo_megatron.hardware import ask_nvidia_smi

# The first start of an interpreter on a network file system takes its time.
_PROBE_SECONDS = 120.0
_TENSORRT_LLM = "1.2"
# From, up to but not including.
_MODELOPT = ((0, 37), (0, 47))
_FP8_CAPABILITY = 8.9
_INSTALL = {
    "transformers": 'pip install "irpo-megatron[train]"',
    "tensorrt_llm": "name the interpreter of an environment with TensorRT-LLM in generation.python",
    "openai": 'pip install "irpo-megatron[server]"',
    "fp8": 'pip install "nvidia-modelopt>=0.37,<0.47" there; TensorRT-LLM 1.2 brings it',
}


def check_generation_environment(generation: GenerationConfig) -> None:
    """The interpreter has this package and the backend's, in versions that go together; GPUs that are here know FP8.

    Raises:
        UserError: the interpreter does not exist or does not start, or a package is missing or of another version; or
            FP8 copies are asked for, and the GPUs of this machine are too old.
    """
    backend, python = generation.backend, generation.python
    wanted = (backend,) if generation.fp8_weights is None else (backend, "fp8")
    found = describe_interpreter(*wanted) if python is None else _ask(python, wanted)
    where = f"{python}" if python is not None else "this environment"
    if found["irpo_megatron"] != irpo_megatron.__version__:
        raise UserError(
            f"{where} has irpo-megatron {found['irpo_megatron']}, and this is {irpo_megatron.__version__}",
            "the driver and the stages that sample are of one version: they hand each other files",
            f"install {irpo_megatron.__version__} there",
        )
    for which in wanted:
        missing = [name for name in PACKAGES[which] if found["packages"][name] is None]
        if missing:
            raise UserError(
                f"generation.backend = {backend}, and {where} lacks {', '.join(missing)}",
                "the stages that sample run by the interpreter in generation.python, where the backend is installed",
                _INSTALL[which],
            )
    version = found["packages"].get("tensorrt_llm")
    if version is not None and not str(version).startswith(f"{_TENSORRT_LLM}."):
        raise UserError(
            f"{where} has TensorRT-LLM {version}",
            f"the backend is written to the interface of TensorRT-LLM {_TENSORRT_LLM}",
            f"install a release of {_TENSORRT_LLM} there",
        )
    if generation.fp8_weights is not None:
        _check_modelopt(str(found["packages"]["modelopt"]), where)
        _check_gpus()


def _check_modelopt(version: str, where: str) -> None:
    oldest, too_new = _MODELOPT
    number = re.match(r"(\d+)\.(\d+)", version)
    if number is None or not oldest <= (int(number[1]), int(number[2])) < too_new:
        raise UserError(
            f"{where} has modelopt {version}",
            "FP8 copies are made by what modelopt 0.37 and 0.46 have in common, at both of which it was tried",
            _INSTALL["fp8"],
        )


def _check_gpus() -> None:
    """Where NVIDIA's driver shows GPUs; on a machine without any nothing can be said."""
    listed = [line for line in ask_nvidia_smi("compute_cap") or () if re.fullmatch(r"\d+\.\d+", line)]
    if listed and max(map(float, listed)) < _FP8_CAPABILITY:
        raise UserError(
            f"the GPUs of this machine have compute capability {', '.join(dict.fromkeys(listed))}",
            f"matrix products in FP8 need {_FP8_CAPABILITY} or more: Ada, Hopper or newer",
            "run on other GPUs, or set generation.tensorrt_llm.fp8_weights=null",
        )


def _ask(python: Path, wanted: tuple[str, ...]) -> Json:
    """What another interpreter has."""
    command = [str(python), "-m", "irpo_megatron.generation.probe", *wanted]
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
