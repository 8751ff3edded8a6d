"""The interpreter of the stages that sample is looked at before anything heavy starts."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import irpo_megatron
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.probe import describe_interpreter
from irpo_megatron.generation_environment import check_generation_environment

STAND_IN = Path(__file__).parent / "support" / "fake_tensorrt_llm"


def interpreter(folder: Path, *, path: Path | None = None) -> Path:
    """This interpreter under another name, with one more folder to import from."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{path or folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def refusal(**generation: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        check_generation_environment(GenerationConfig.model_validate(generation))
    return caught.value


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter looks in the working directory first, where this repository would be found."""
    monkeypatch.chdir(tmp_path)


TENSORRT_LLM: dict[str, Any] = {"backend": "tensorrt_llm", "tensorrt_llm": {}}


@pytest.mark.parametrize("backend", ["transformers", "openai"])
def test_this_environment_has_what_it_needs(tmp_path: Path, backend: str) -> None:
    for python in (None, interpreter(tmp_path)):
        check_generation_environment(GenerationConfig.model_validate({"backend": backend, "python": python}))


def test_an_environment_with_the_engine(tmp_path: Path) -> None:
    python = interpreter(tmp_path, path=STAND_IN)
    check_generation_environment(GenerationConfig.model_validate(TENSORRT_LLM | {"python": python}))


def test_an_environment_without_the_engine(tmp_path: Path) -> None:
    assert refusal(**TENSORRT_LLM).seen == (
        "generation.backend = tensorrt_llm, and this environment lacks tensorrt_llm"
    )
    assert "generation.python" in refusal(**TENSORRT_LLM).remedy
    python = interpreter(tmp_path)
    assert f"{python} lacks tensorrt_llm" in refusal(**TENSORRT_LLM, python=python).seen


def test_an_engine_of_another_release(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_llm").mkdir()
    metadata = tmp_path / "tensorrt_llm-1.3.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.3.0\n")
    python = interpreter(tmp_path)
    assert refusal(**TENSORRT_LLM, python=python).seen == f"{python} has TensorRT-LLM 1.3.0"


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    error = refusal(python=tmp_path / "python")
    assert error.seen.startswith(f"generation.python = {tmp_path / 'python'} does not start: ")
    (tmp_path / "folder").mkdir()
    assert "does not start" in refusal(python=tmp_path / "folder").seen


@pytest.mark.parametrize(
    ("init", "last"),
    [("raise ImportError('broken here')", "ImportError: broken here"), ("raise SystemExit(3)", "status 3")],
)
def test_an_interpreter_without_this_package(tmp_path: Path, init: str, last: str) -> None:
    (tmp_path / "irpo_megatron").mkdir()
    (tmp_path / "irpo_megatron" / "__init__.py").write_text(init)
    error = refusal(python=interpreter(tmp_path))
    assert error.seen.endswith(f"cannot import this package: {last}")
    assert "pip install irpo-megatron==" in error.remedy


def answering(folder: Path, version: str, **packages: str | None) -> Path:
    """An interpreter of an environment that says of itself what is given."""
    room = folder / "irpo_megatron" / "generation"
    room.mkdir(parents=True)
    for path in (room.parent, room):
        (path / "__init__.py").write_text("")
    (room / "probe.py").write_text(f"print({json.dumps({'irpo_megatron': version, 'packages': packages})!r})")
    return interpreter(folder)


def test_another_version_of_this_package(tmp_path: Path) -> None:
    error = refusal(python=answering(tmp_path, "0.0.1"))
    assert "has irpo-megatron 0.0.1, and this is " in error.seen


FP8: dict[str, Any] = {"backend": "tensorrt_llm", "tensorrt_llm": {"fp8_weights": {}}}


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="needs modelopt")
def test_modelopt_is_looked_for_by_the_name_of_its_distribution() -> None:
    packages = describe_interpreter("tensorrt_llm", "fp8")["packages"]
    assert list(packages) == ["tensorrt_llm", "modelopt", "transformers"]
    assert packages["modelopt"] == importlib.metadata.version("nvidia-modelopt")


@pytest.mark.parametrize("version", ["0.37.0", "0.46.1"])
def test_an_environment_that_makes_fp8_copies(tmp_path: Path, version: str) -> None:
    packages = {"tensorrt_llm": "1.2.1", "modelopt": version, "transformers": "4.57.1"}
    python = answering(tmp_path, irpo_megatron.__version__, **packages)
    check_generation_environment(GenerationConfig.model_validate(FP8 | {"python": python}))


@pytest.mark.parametrize(
    ("version", "seen"),
    [
        (None, "lacks modelopt"),
        ("0.36.1", "has modelopt 0.36.1"),
        ("0.47.0", "has modelopt 0.47.0"),
        ("unknown", "has"),
    ],
)
def test_an_environment_that_does_not(tmp_path: Path, version: str | None, seen: str) -> None:
    packages = {"tensorrt_llm": "1.2.1", "modelopt": version, "transformers": "4.57.1"}
    error = refusal(**FP8, python=answering(tmp_path, irpo_megatron.__version__, **packages))
    assert f"{tmp_path / 'python'} {seen}" in error.seen
    assert "nvidia-modelopt>=0.37,<0.47" in error.remedy


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("8.0\n8.0", True),
        ("8.6\n7.5", True),
        ("8.9", False),
        ("9.0\n9.0", False),
        ("10.0", False),
        ("8.0\n9.0", False),  # which of them the engine gets is not known here
        ("NVIDIA-SMI has failed", False),
    ],
)
def test_gpus_that_are_here_know_fp8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, refused: bool
) -> None:
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\n[ "$1" = --query-gpu=compute_cap ] && printf "{answer}"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    packages = {"tensorrt_llm": "1.2.1", "modelopt": "0.37.0", "transformers": "4.57.1"}
    python = answering(tmp_path, irpo_megatron.__version__, **packages)
    if refused:
        error = refusal(**FP8, python=python)
        assert error.seen.startswith("the GPUs of this machine have compute capability 8.")
    else:
        check_generation_environment(GenerationConfig.model_validate(FP8 | {"python": python}))
