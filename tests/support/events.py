"""What the processes of a stage have left for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def events_of(file: Path) -> list[dict[str, Any]]:
    """The events of one process, of all attempts."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
