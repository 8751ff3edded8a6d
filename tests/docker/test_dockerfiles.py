"""The Dockerfiles, docker/versions.env and the project's other pins agree; nothing that must not goes into an image.

No image is built here: what a line does is not known from these tests, only what it says.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from irpo_megatron.environment import IMAGE_VERSIONS, image_versions
from irpo_megatron.nvidia_packages import TRANSFORMER_ENGINE_VERSIONS

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text()

each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def instructions(dockerfile: Path, name: str) -> list[str]:
    """What stands behind each instruction of this name."""
    structure: list[dict[str, Any]] = DockerfileParser(fileobj=io.BytesIO(dockerfile.read_bytes())).structure
    return [part["value"] for part in structure if part["instruction"] == name]


@pytest.fixture(scope="module")
def versions() -> dict[str, str]:
    found = image_versions(ROOT / "docker" / "versions.env")
    assert found is not None
    return found


# One source of versions


def test_every_version_is_used_and_every_argument_is_a_version(versions: dict[str, str]) -> None:
    arguments = [argument for dockerfile in DOCKERFILES for argument in instructions(dockerfile, "ARG")]
    assert set(arguments) == versions.keys(), "an argument has no default, and is in versions.env"


@each_dockerfile
def test_what_is_declared_is_used(dockerfile: Path) -> None:
    used = set(re.findall(r"\$\{(\w+)\}", dockerfile.read_text()))
    assert used == set(instructions(dockerfile, "ARG"))


@each_dockerfile
def test_the_image_holds_the_versions_where_a_run_looks_for_them(dockerfile: Path) -> None:
    assert f"docker/versions.env {IMAGE_VERSIONS}" in instructions(dockerfile, "COPY")


def test_make_hands_over_every_version(versions: dict[str, str]) -> None:
    command = ["make", "--dry-run", "--no-print-directory", "images", "IMAGES=train"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert dict(pair.split("=", 1) for pair in re.findall(r"--build-arg (\S+)", said)) == versions
    assert "--file docker/train.Dockerfile" in said


def test_versions_are_those_of_the_other_pins(versions: dict[str, str]) -> None:
    megatron = f"megatron-core=={versions['MEGATRON_CORE_VERSION']}"
    assert f'"{megatron}"' in (ROOT / "pyproject.toml").read_text()
    assert megatron in CONSTRAINTS.splitlines()
    oldest, too_new = TRANSFORMER_ENGINE_VERSIONS
    assert oldest <= tuple(map(int, versions["TRANSFORMER_ENGINE_VERSION"].split(".")[:2])) < too_new
    contract = json.loads((ROOT / "tests" / "contracts" / "tensorrt_llm_1_2.json").read_text())
    assert versions["TENSORRT_LLM_VERSION"] == contract["release"]
    assert f"tensorrt-llm=={contract['release']}" in (ROOT / "docs" / "generation.md").read_text()
    assert f"(Python {versions['PYTHON_VERSION'].rpartition('.')[0]})" in CONSTRAINTS.splitlines()[0]
    assert re.fullmatch(r"[0-9a-f]{40}", versions["APEX_COMMIT"])


# What an image is


@each_dockerfile
def test_the_last_user_is_not_root(dockerfile: Path) -> None:
    assert int(instructions(dockerfile, "USER")[-1]) >= 1000


@each_dockerfile
def test_nothing_is_fetched_by_docker_itself_and_nothing_is_a_secret(dockerfile: Path) -> None:
    assert instructions(dockerfile, "ADD") == []
    values = instructions(dockerfile, "ARG") + instructions(dockerfile, "ENV")
    assert not [value for value in values if re.search(r"token|secret|passw|credential|_key\b", value, re.IGNORECASE)]


@each_dockerfile
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    said = subprocess.run([hadolint, "--no-color", dockerfile], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


def test_only_what_is_named_goes_into_an_image() -> None:
    patterns = lines_of(ROOT / ".dockerignore")
    assert patterns[0] == "*", "everything stays out but what the next lines name"
    named = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert all((ROOT / name).exists() and not name.startswith(".") for name in named)
    assert named.isdisjoint(pattern.strip("/") for pattern in lines_of(ROOT / ".gitignore"))
    assert patterns[-3:] == ["**/.*", "**/__pycache__", "**/*.egg-info"], "nor what lies hidden in what is named"


def lines_of(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
