"""Which process this is, of all that there ever were on all nodes; and whether one has ended."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process, named so that no other one is taken for it: numbers of processes are used again."""

    host: str
    boot: str
    """The kernel's id of this start of the machine; empty where the system has none, as outside Linux."""
    namespace: str
    """The namespace that `pid` is a number in: containers on one machine count for themselves."""
    pid: int
    started: int | None
    """Clock ticks from the machine's start to the process's."""

    @classmethod
    def own(cls) -> ProcessIdentity:
        """The identity of this process."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            boot=_read("/proc/sys/kernel/random/boot_id"),
            namespace=_namespace(),
            pid=pid,
            started=_start_time(pid),
        )

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False where it cannot be seen from here."""
        here = (self.host, self.boot, self.namespace) == (
            socket.gethostname(),
            _read("/proc/sys/kernel/random/boot_id"),
            _namespace(),
        )
        return here and self.boot != "" and _start_time(self.pid) != self.started


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> int | None:
    """None where there is no such process, or it has ended and only its parent does not know yet."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    # The name, in parentheses, may hold anything. Behind it: the state, ..., and as the 22nd field of all the start.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
