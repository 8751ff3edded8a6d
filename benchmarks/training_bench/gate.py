"""What both workers share: a training loop that runs only when it is asked to, and says how long it took.

A worker reads one JSON command a line, `{"run": 4}`, `{"profile": 20}` or `{"stop": true}`, and answers with one line.
It holds its model all the while; between two commands it sleeps in `readline`. Both environments import this file, so
it needs nothing but torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


class Gate:
    """Stands between two optimizer steps of a training loop that knows nothing of it.

    Construct it after the heavy imports and before the model is loaded: memory is counted from there.
    """

    def __init__(self, threads: int, *, warm_up_steps: int = 1) -> None:
        # Commands and answers own the pipes; what libraries print goes to the log.
        self._commands = os.fdopen(os.dup(0), "r")
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        torch.set_num_threads(threads)
        self._left = warm_up_steps
        self._asked = 0
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._profiler: Any = None
        self._rows = 0
        self._after_imports_mib = status_mib("VmRSS")
        self.first_step: dict[str, float] = {}
        """Figures of the very first step, handed out with the first answer."""

    def between_steps(self) -> None:
        """Called by the loop after every step; returns when the next one is wanted."""
        self._left -= 1
        if self._left > 0:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._started
        cpu_seconds = time.process_time() - self._cpu_started
        if self._profiler is not None:
            self._answer(table=self._profile_table())
        elif self._asked:
            self._answer(steps=self._asked, seconds=seconds, cpu_seconds=cpu_seconds, **self._memory())
        else:
            self._answer(first_step=self.first_step, set_up_seconds=seconds, versions=_versions())
        command = json.loads(self._commands.readline() or '{"stop": true}')
        if "stop" in command:
            raise SystemExit(0)
        self._rows = command.get("profile", 0)
        self._asked = self._left = command.get("run", 1)
        if self._rows:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def _answer(self, **values: Any) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()

    def _memory(self) -> dict[str, float]:
        """The highest so far: of the process, the same without the libraries, and on the GPU."""
        peak = status_mib("VmHWM")
        figures = {"peak_mib": peak, "peak_without_imports_mib": peak - self._after_imports_mib}
        if torch.cuda.is_available():
            figures["peak_cuda_mib"] = torch.cuda.max_memory_allocated() / MIB
        return figures

    def _profile_table(self) -> str:
        self._profiler.stop()
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        table: str = self._profiler.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=self._rows)
        self._profiler = None
        return table


def read_settings() -> dict[str, Any]:
    """The JSON file that a worker is started with."""
    settings: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return settings


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "trl", "megatron-core"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def status_mib(field: str) -> float:
    """A line of /proc/self/status; `ru_maxrss` would count what the process was forked from."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise LookupError(f"/proc/self/status has no {field}")
