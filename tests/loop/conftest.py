"""One base model and one finished loop for all tests of the loop."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pytest
from support.command import LOOP, irpo
from support.tracing import traced

# What a shell may hold, each with a value of its own.
SECRETS = {
    name: secrets.token_hex(16)
    for name in ("WANDB_API_KEY", "HF_TOKEN", "IRPO_SERVER_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
}


@pytest.fixture(scope="session")
def shell_secrets() -> dict[str, str]:
    """What the environment of `finished_runs` held."""
    return SECRETS


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `base` and `loop`; read only."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        with traced():
            finished = irpo("run", LOOP, f"runs={runs}")
    assert finished.status == 0, finished.errors
    return runs


@pytest.fixture
def runs_with_base(finished_runs: Path, tmp_path: Path) -> Path:
    """A folder of its own with the finished run `base`."""
    shutil.copytree(finished_runs / "base", tmp_path / "base")
    return tmp_path
