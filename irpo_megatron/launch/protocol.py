"""What starts the processes of a stage, and in which shapes stages come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from irpo_megatron.requests import Request, WorkerRequest

WORKER = "irpo_megatron.generation.worker"
"""The module of a process that samples; it knows nothing of the others, and where one is lost, they go on."""


@dataclass(frozen=True)
class OneProcess:
    """One process, which may use the whole machine that it runs on."""


@dataclass(frozen=True)
class Ranks:
    """Processes that meet in collectives, one a GPU: what ends one of them ends all."""

    count: int


Shape = OneProcess | Ranks


class Launcher(Protocol):
    """Starts the processes of a stage."""

    def run(
        self, module: str, request: Request, path: Path, *, shape: Shape, log: Path, watch: Callable[[], None]
    ) -> None:
        """Run a stage's module on a request and wait; its output is appended to `log`.

        Args:
            path: Where the request was written.
            watch: Called a few times a second meanwhile.

        Raises:
            UserError: the stage found a mistake of the user's.
            Interrupted: this process or the stage was asked to stop, or cannot go on in what is left of a job.
            StageError: the stage failed otherwise; names the log.
        """

    def sample(
        self, request: WorkerRequest, path: Path, *, logs: Path, watch: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        """Have workers sample into the stage's partial directory, with engines that are gone when this returns.

        Args:
            path: Where the request was written.
            logs: `a/b` stands for `a/b-worker-0.log`, ...
            watch: Called a few times a second meanwhile.
            say: Is told of workers that died and that the stage does without.

        Raises:
            UserError, Interrupted: as `run`; what was published is kept.
            StageError: all workers died; names the logs.
        """
