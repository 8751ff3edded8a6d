"""What is written down of where a run was computed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from support.command import ROOT
from support.events import events_of

from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.environment import describe_environment, image_versions, record_environment
from irpo_megatron.errors import UserError

_PRINT = "import json; from irpo_megatron.environment import describe_environment as d; print(json.dumps(d()))"


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_seen_from(folder: Path) -> tuple[str | None, bool | None]:
    """What the package that lies in a folder says of itself."""
    command = [sys.executable, "-c", _PRINT]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["commit"], found["modified"]


def copy_package(folder: Path) -> None:
    """What `environment.py` needs of the package."""
    (folder / "irpo_megatron").mkdir()
    for name in ("__init__.py", "artifacts.py", "environment.py", "errors.py", "hardware.py"):
        shutil.copy(ROOT / "irpo_megatron" / name, folder / "irpo_megatron")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the package in it."""
    copy_package(tmp_path)
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def test_versions_machine_and_nothing_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    environment = describe_environment()
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["packages"]["tensorrt-llm"] is None or "." in environment["packages"]["tensorrt-llm"]
    assert environment["packages"]["pyarrow"] == pyarrow.__version__
    assert environment["slurm"] == {"job": "42", "nodes": "n[1-2]"}
    assert "image" in environment
    assert "hf_secret" not in json.dumps(environment)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert describe_environment()["slurm"] is None


def test_the_commit_of_a_checkout_and_whether_it_is_as_committed(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_seen_from(checkout) == (head, False)
    (checkout / "notes.txt").write_text("not part of the package\n")
    assert commit_seen_from(checkout) == (head, False)
    (checkout / "irpo_megatron" / "new.py").write_text("x = 1\n")
    assert commit_seen_from(checkout) == (head, True)


def test_a_package_that_is_only_installed_in_somebodys_repository_is_not_of_its_commit(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    copy_package(packages)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "of somebody else")
    assert commit_seen_from(packages) == (None, None)
    noted = packages / "irpo_megatron-0.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text("Metadata-Version: 2.1\nName: irpo-megatron\nVersion: 0\n")
    origin = {"url": "https://token@host/x.git", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}}
    write_json(noted / "direct_url.json", origin)
    assert commit_seen_from(packages) == ("0123abc", None)


def test_every_start_is_kept_and_a_change_of_versions_is_told(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert record_environment(tmp_path) == []
    assert record_environment(tmp_path) == []
    now = read_json(tmp_path / "environment.json")
    before = {**now, "python": "3.0.1", "host": "elsewhere", "packages": {**now["packages"], "torch": None, "x": "1"}}
    del before["commit"]
    write_json(tmp_path / "environment.json", before)
    assert record_environment(tmp_path) == [
        f"commit was null, is {json.dumps(now['commit'])}",
        f"packages.torch was null, is {json.dumps(now['packages']['torch'])}",
        'packages.x was "1", is null',
        f'python was "3.0.1", is "{now["python"]}"',
    ]
    starts = events_of(tmp_path / "logs" / "starts.jsonl")
    assert [start.pop("time")[-6:] for start in starts] == ["+00:00"] * 3
    assert starts == [now, now, now]


def test_outside_of_an_image(tmp_path: Path) -> None:
    assert image_versions(tmp_path / "versions.env") is None


def test_names_and_values_without_comments(tmp_path: Path) -> None:
    file = tmp_path / "versions.env"
    file.write_text("# A comment.\n\nPYTORCH_TAG=25.11-py3@sha256:0aF\nAPEX_COMMIT=10417ace\n")
    assert image_versions(file) == {"PYTORCH_TAG": "25.11-py3@sha256:0aF", "APEX_COMMIT": "10417ace"}


@pytest.mark.parametrize(
    "text",
    [
        b"PYTORCH_TAG=$(id)\n",
        b"PYTORCH_TAG=`id`\n",
        b"PYTORCH_TAG='25.11'\n",
        b"PYTORCH_TAG=25.11 # a comment\n",
        b"export PYTORCH_TAG=25.11\n",
        b" PYTORCH_TAG=25.11\n",
        b"PYTORCH_TAG=\n",
        b"PYTORCH_TAG\n",
        b"PYTORCH_TAG=1\nPYTORCH_TAG=2\n",
        b"PYTORCH_TAG=\xff\n",
        b"#" * 20_000,
    ],
    ids=lambda text: repr(text[:30]),
)
def test_anything_else_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "versions.env"
    file.write_bytes(text)
    with pytest.raises(UserError) as caught:
        image_versions(file)
    assert str(file) in caught.value.seen
