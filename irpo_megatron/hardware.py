"""The machine that a process runs on, asked without torch."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from irpo_megatron.artifacts import Json

# Without its persistence mode the driver wakes every GPU first.
_NVIDIA_SMI_SECONDS = 60.0


def describe_hardware() -> Json:
    """Processor, cores, memory and GPUs of this machine."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": ask_nvidia_smi("name,memory.total,driver_version"),
    }


def usable_cores() -> int:
    """CPU cores that this process may use: a container or a batch system may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ask_nvidia_smi(properties: str) -> list[str] | None:
    """What NVIDIA's driver says of each GPU, a line each.

    Args:
        properties: As `nvidia-smi --query-gpu` takes them.

    Returns:
        None where `nvidia-smi` is missing, fails or does not answer.
    """
    command = ["nvidia-smi", f"--query-gpu={properties}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()


def _processor() -> str:
    """Its name as the kernel knows it, or at least its family."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named is not None else platform.machine()
