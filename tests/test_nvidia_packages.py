"""Transformer Engine and apex are found without an import, and what only looks like them is refused."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.nvidia_packages import (
    TRANSFORMER_ENGINE_VERSIONS,
    apex_provides_fused_weight_gradients,
    has_transformer_engine,
    refuse_other_apex,
    require_transformer_engine,
    transformer_engine_version,
)

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def install(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Let Transformer Engine be installed in a version, as far as package metadata go."""
    real = importlib.metadata.version

    def fake(name: str) -> str:
        if name != "transformer-engine":
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)


def package(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("raise AttributeError('imported')")


# Transformer Engine


@pytest.mark.parametrize("version", ["2.9.0", "2.9.0a0", "2.10.0", "2.11.0", "2.11.3", "2.11.0+c188b53", "2.9"])
def test_versions_that_megatron_core_is_tested_with(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version)
    assert transformer_engine_version() == version
    assert has_transformer_engine()
    require_transformer_engine("precision.fp8.recipe = delayed")


@pytest.mark.parametrize("version", ["1.14.0", "2.8.0", "2.12.0", "2.12.0.dev0", "2.20.2", "3.0", "unknown"])
def test_another_version_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version)
    for check in (has_transformer_engine, lambda: require_transformer_engine("key")):
        with pytest.raises(UserError) as caught:
            check()
        assert caught.value.seen == f"Transformer Engine {version} is installed"
        assert "2.9 up to, not including, 2.12" in caught.value.rule
        assert 'pip install --no-build-isolation "irpo-megatron[transformer-engine]"' in caught.value.remedy


def test_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert transformer_engine_version() is None
    assert not has_transformer_engine()
    with pytest.raises(UserError) as caught:
        require_transformer_engine("precision.fp8.recipe = delayed")
    assert caught.value.seen == "precision.fp8.recipe = delayed, and Transformer Engine is not installed"
    assert "precision.fp8=null" in caught.value.remedy


def test_the_range_is_that_of_megatron_core_and_of_the_extra() -> None:
    """Three places say it: this package, its extra, and what Megatron-Core's own developers install."""
    oldest, too_new = (".".join(map(str, version)) for version in TRANSFORMER_ENGINE_VERSIONS)
    (theirs,) = [
        line
        for line in importlib.metadata.requires("megatron-core") or ()
        if line.startswith("transformer-engine") and 'extra == "dev"' in line
    ]
    assert set(re.findall(r"[<>=]+[\d.a]+\d", theirs.partition(";")[0])) == {f">={oldest}.0a0", f"<{too_new}.0"}
    assert f'\ntransformer-engine = ["transformer-engine[pytorch]>={oldest},<{too_new}"]\n' in PYPROJECT


def test_no_cpu_install_takes_transformer_engine_or_apex() -> None:
    """Neither by the Makefile, nor by another extra, nor pinned."""
    texts = [(ROOT / file).read_text() for file in ("Makefile", "constraints.txt", "docker/cpu.Dockerfile")]
    requirements = re.findall(r"^(?!transformer-engine = |#).*[\"\[](?:transformer[-_]engine|apex).*", PYPROJECT, re.M)
    assert requirements == []
    for text in texts:
        assert not re.search(r"transformer[-_]engine|\bapex\b", text, re.IGNORECASE)


# apex


def test_no_apex_is_no_mistake() -> None:
    refuse_other_apex()
    assert not apex_provides_fused_weight_gradients()


@pytest.mark.parametrize("file", ["apex/__init__.py", "apex/models.py", "apex.py"], ids=["package", "folder", "module"])
def test_an_apex_that_is_not_nvidias(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, file)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as caught:
        refuse_other_apex()
    assert str(tmp_path / "apex") in caught.value.seen
    assert "the `apex` on PyPI is another package" in caught.value.rule
    assert "pip uninstall apex" in caught.value.remedy
    assert "optional" in caught.value.remedy


def test_nvidias_apex_is_known_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of it is imported: every file here would raise."""
    package(tmp_path, "apex/__init__.py", "apex/optimizers/__init__.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    refuse_other_apex()
    assert not apex_provides_fused_weight_gradients()  # built without its kernels
    package(tmp_path, "fused_weight_gradient_mlp_cuda.py")
    assert apex_provides_fused_weight_gradients()


def test_an_apex_that_is_not_nvidias_is_named_before_megatron_core_meets_it(tmp_path: Path) -> None:
    package(tmp_path, "apex/__init__.py")
    finished = subprocess.run(
        [sys.executable, "-c", "import irpo_megatron.engine"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert "is a package called apex, and not NVIDIA's" in finished.stderr
