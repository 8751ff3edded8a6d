"""The ways in which Megatron-Core is known not to import, each said plainly."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from irpo_megatron.engine.imports import import_megatron
from irpo_megatron.errors import UserError


def _failing(monkeypatch: pytest.MonkeyPatch, module: str, error: Exception) -> None:
    real = importlib.import_module

    def import_module(name: str, package: str | None = None) -> ModuleType:
        if name == module:
            raise error
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_here_it_imports() -> None:
    import_megatron()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cudnn shared object not found."),
        FileNotFoundError("Could not find shared object file for Transformer Engine torch lib."),
        AssertionError("Transformer Engine package version mismatch."),
    ],
    ids=["without CUDA", "without its torch extension", "in two versions"],
)
def test_a_broken_transformer_engine_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, "megatron.core", error)
    with pytest.raises(UserError) as caught:
        import_megatron()
    assert str(error) in caught.value.seen
    assert "Transformer Engine" in caught.value.rule
    assert "pip uninstall transformer-engine" in caught.value.remedy


def test_a_transformer_engine_that_breaks_on_import_is_caught_for_real(tmp_path: Path) -> None:
    """Not only a patched importer: a package of that name that fails as the real one does without CUDA."""
    import os
    import subprocess
    import sys

    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise RuntimeError('Found empty `transformer-engine` meta package installed')"
    )
    finished = subprocess.run(
        [sys.executable, "-c", "import irpo_megatron.engine"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert "an installed Transformer Engine must be able to load its CUDA libraries" in finished.stderr


@pytest.mark.parametrize(
    ("module", "remedy"), [("megatron.core", 'pip install "irpo-megatron[train]"'), ("psutil", "pip install psutil")]
)
def test_what_is_missing_is_named_with_its_remedy(module: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, module, ImportError(f"No module named '{module}'"))
    with pytest.raises(UserError) as caught:
        import_megatron()
    assert caught.value.remedy == remedy
