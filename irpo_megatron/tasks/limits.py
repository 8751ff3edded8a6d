"""Limits that a process sets itself before it works on what a model wrote.

The kernel holds them: a long computation in C reaches no signal handler of Python's, and may hold Python's lock.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SIZES = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one question may cost."""

    cpu_seconds: float = 5.0
    """CPU time and not wall time, so that a busy machine changes no verdict. A pair takes math-verify about 0.02 s."""
    memory_mib: int = 1024
    """Address space beyond what the process has when it begins to work."""


@contextmanager
def cpu_time(seconds: float) -> Iterator[None]:
    """The kernel ends this process if the block computes for longer."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory(mib: int) -> None:
    """Let this process grow by so much; more is a `MemoryError`. Without Linux's /proc there is no limit."""
    if _SIZES.exists():
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = _size("VmSize") + mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def peak_mib() -> float:
    """The largest address space that this process ever had, in MiB; 0 without Linux's /proc."""
    return _size("VmPeak") / 2**20 if _SIZES.exists() else 0.0


def _size(key: str) -> int:
    line = next(line for line in _SIZES.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


# Names of Python's audit events, or their beginnings.
_REFUSED = (
    *("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "pty."),
    *("os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.ch"),
    *("shutil.", "socket.", "tempfile."),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def stay_inside() -> None:
    """From now on this process ends where Python code in it starts a process, writes a file or opens a socket.

    It is the second line of defence: nothing that grades is meant to run what a model wrote.
    """
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
    if writes or event.startswith(_REFUSED):
        os._exit(1)
