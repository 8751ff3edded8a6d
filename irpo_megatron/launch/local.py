"""Stages on this machine: one process, several under torchrun, or workers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from irpo_megatron.config import Config
from irpo_megatron.launch.devices import share_devices, visible_devices
from irpo_megatron.launch.local_workers import run_workers
from irpo_megatron.launch.protocol import WORKER, Ranks, Shape
from irpo_megatron.launch.supervision import GRACE_SECONDS, supervise
from irpo_megatron.requests import Request, WorkerRequest

# A stage that listens only takes note of SIGTERM: this is for torchrun and for helpers of the stage.
_GRACE_OF_LISTENERS_SECONDS = 1.0


class LocalLauncher:
    """The protocol `Launcher` on this machine."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def run(
        self, module: str, request: Request, path: Path, *, shape: Shape, log: Path, watch: Callable[[], None]
    ) -> None:
        """See the protocol."""
        run_stage_process(
            module,
            path,
            processes=shape.count if isinstance(shape, Ranks) else 1,
            threads=self._config.launch.threads,
            log=log,
            watch=watch,
            python=request.python,
        )

    def sample(
        self, request: WorkerRequest, path: Path, *, logs: Path, watch: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        """See the protocol."""
        generation = request.generation
        run_workers(
            WORKER,
            path,
            request.output,
            variables=share_devices(visible_devices(), workers=generation.workers, each=generation.gpus_a_worker),
            threads=self._config.launch.threads,
            logs=logs,
            watch=watch,
            say=say,
            python=request.python,
        )


def run_stage_process(
    module: str,
    request: Path,
    *,
    processes: int,
    threads: int,
    log: Path,
    watch: Callable[[], None],
    python: Path | None = None,
) -> None:
    """Run `module` on `request` and wait, as `supervise` does.

    Args:
        processes: World size; above 1 torchrun starts the ranks.
        python: The interpreter, of another environment that has this package too; None is this one.
    """
    command = [str(python or sys.executable), "-m", "irpo_megatron.process", module, str(request)]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    supervise(
        command,
        request,
        threads=threads,
        log=log,
        watch=watch,
        grace=GRACE_SECONDS,
        grace_of_listeners=_GRACE_OF_LISTENERS_SECONDS,
    )
