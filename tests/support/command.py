"""The `irpo` command as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOP = ROOT / "tests" / "loop" / "loop.yaml"


@dataclass(frozen=True)
class Finished:
    """What a command left."""

    status: int
    output: str
    errors: str


def start_irpo(*arguments: str | Path, directory: Path = ROOT) -> subprocess.Popen[str]:
    """Start the command in a directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "irpo_megatron.cli", *map(str, arguments)],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def irpo(*arguments: str | Path, directory: Path = ROOT) -> Finished:
    """Run the command to its end."""
    process = start_irpo(*arguments, directory=directory)
    output, errors = process.communicate(timeout=1200)
    return Finished(process.returncode, output, errors)
