"""What a machine says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from irpo_megatron.hardware import describe_hardware


def test_processor_cores_and_memory() -> None:
    found = describe_hardware()
    assert found["processor"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert found["memory_bytes"] == int(total.split()[1]) * 1024


@pytest.mark.parametrize(
    ("program", "gpus"),
    [
        ("echo 'NVIDIA H100, 81559 MiB, 550.54'; echo 'NVIDIA H100, [N/A], 550.54'", 2),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9", None),
        (None, None),
    ],
)
def test_gpus_as_the_driver_names_them(
    program: str | None, gpus: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = describe_hardware()["gpus"]
    assert found == (["NVIDIA H100, 81559 MiB, 550.54", "NVIDIA H100, [N/A], 550.54"] if gpus else None)
