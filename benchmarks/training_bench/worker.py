"""A worker process as the benchmark sees it: it is started, asked to run steps, and stopped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from irpo_megatron.artifacts import write_json

ROOT = Path(__file__).parent.parent.parent
LOG_LINES = 30


class Worker:
    """One side of the comparison; it computes only while `ask` waits for it."""

    def __init__(
        self,
        name: str,
        python: Path,
        module: str,
        settings: dict[str, Any],
        folder: Path,
        *,
        first_on_path: Path | None = None,
    ) -> None:
        """Start the process and wait until its first step, the warm-up, is done.

        Args:
            folder: Where its settings and its log go.
            first_on_path: Where it looks for packages before its environment.

        Raises:
            RuntimeError: it ended instead; the message has the end of its log.
        """
        self.name = name
        slug = "".join(letter if letter.isalnum() else "-" for letter in name)
        self._log = folder / f"{slug}.log"
        settings_path = folder / f"{slug}.settings.json"
        write_json(settings_path, settings)
        threads = str(settings["threads"])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.training_bench.{module}", settings_path],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": threads,
                    "MKL_NUM_THREADS": threads,
                    "TOKENIZERS_PARALLELISM": "false",
                    "HF_HUB_OFFLINE": "1",
                    "HF_HOME": str(folder / "huggingface"),
                    "PYTHONPATH": str(first_on_path or ""),
                },
            )
        self.ready = self._answer()
        """What it says of its first step, of its versions and of its threads."""

    def ask(self, **command: Any) -> dict[str, Any]:
        """Have it do something, and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            end = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
            raise RuntimeError(
                f"the worker {self.name!r} ended with status {status}; its log, {self._log}, ends in\n{end}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It holds nothing worth keeping, so it need not be asked."""
        self._process.kill()
        self._process.wait()
