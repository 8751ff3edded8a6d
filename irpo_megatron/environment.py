"""What a run was computed with: versions, the commit, the machine, the job; and nothing secret."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from irpo_megatron.artifacts import Json, flatten, read_json, write_json
from irpo_megatron.errors import UserError
from irpo_megatron.hardware import describe_hardware

# Where docker/*.Dockerfile leave the versions that the image was built from.
IMAGE_VERSIONS = Path("/etc/irpo-megatron/versions.env")
_LONGEST = 16 * 1024
_PIN = re.compile(r"(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>[A-Za-z0-9._:@/+-]+)")

_NAME = "irpo-megatron"
_PACKAGES = (
    _NAME,
    "megatron-core",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "pydantic",
    "omegaconf",
    "numpy",
    "transformer-engine",
    "tensorrt-llm",
)
_SOFTWARE = ("python", "packages", "image", "commit", "modified")
_GIT_SECONDS = 20.0


def record_environment(run_dir: Path) -> list[str]:
    """Write `environment.json`, and add it to `logs/starts.jsonl`, which has every start of the run.

    Returns:
        What of the software is not what it was at the last start.
    """
    file, now = run_dir / "environment.json", describe_environment()
    before = read_json(file) if file.is_file() else now
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with (run_dir / "logs" / "starts.jsonl").open("a", encoding="utf-8") as starts:
        starts.write(json.dumps({"time": time, **now}) + "\n")
    write_json(file, now)
    was, is_now = (flatten({key: kept.get(key) for key in _SOFTWARE}) for kept in (before, now))
    return [
        f"{key} was {json.dumps(was.get(key))}, is {json.dumps(is_now.get(key))}"
        for key in sorted(was.keys() | is_now.keys())
        if was.get(key) != is_now.get(key)
    ]


def describe_environment() -> Json:
    """What this process runs with and on; of the environment's variables only the number and the nodes of a job."""
    job = os.environ.get("SLURM_JOB_ID")
    return {
        **describe_software(),
        **_describe_commit(),
        "host": socket.gethostname(),
        "hardware": describe_hardware(),
        "slurm": None if job is None else {"job": job, "nodes": os.environ.get("SLURM_JOB_NODELIST")},
    }


def describe_software() -> Json:
    """Versions of what computes (null where it is not installed), and of the image (null outside of one)."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "image": image_versions(IMAGE_VERSIONS),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def image_versions(path: Path) -> dict[str, str] | None:
    """What the container image that this process is in was built from, by name; None outside of an image.

    Raises:
        UserError: the file holds anything but comments and lines of the form NAME=VALUE, each name once.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        text = file.read(_LONGEST + 1)
    lines = [line for line in text.decode(errors="replace").splitlines() if line and not line.startswith("#")]
    pins = [_PIN.fullmatch(line) for line in lines]
    versions = {pin["name"]: pin["value"] for pin in pins if pin is not None}
    if len(text) > _LONGEST or len(versions) < len(lines):
        raise UserError(
            f"{path} is not as docker/versions.env of this project is",
            f"its lines are comments and NAME=VALUE, each name once, {_LONGEST} bytes in all",
            "build the image again with make images",
        )
    return versions


def _describe_commit() -> Json:
    """The commit of this package, and whether its files differ from it; null where nobody knows."""
    folder, this = Path(__file__).parent, Path(__file__).name
    if _git(folder, "ls-files", "--error-unmatch", this) is None:  # or git would tell of where it is installed
        return {"commit": _installed_commit(), "modified": None}
    changes = _git(folder, "status", "--porcelain", "--", ".")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "modified": None if changes is None else changes != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it is missing, refuses or does not answer."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _installed_commit() -> str | None:
    """The commit that pip was told to install, as it notes it beside the package."""
    try:
        noted = importlib.metadata.distribution(_NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    commit = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    return None if commit is None else str(commit)
