"""The interpreter of the stages that sample is looked at before anything heavy starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
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


def test_another_version_of_this_package(tmp_path: Path) -> None:
    room = tmp_path / "irpo_megatron" / "generation"
    room.mkdir(parents=True)
    for folder in (room.parent, room):
        (folder / "__init__.py").write_text("")
    (room / "probe.py").write_text("""print('{"irpo_megatron": "0.0.1", "packages": {}}')""")
    assert "has irpo-megatron 0.0.1, and this is " in refusal(python=interpreter(tmp_path)).seen
