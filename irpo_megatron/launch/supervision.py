"""A stage's command from its start to its end: the log, the user's signals, what it says went wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from irpo_megatron.errors import Interrupted
from irpo_megatron.launch.child import (
    Child,
    FirstSignal,
    first_signal,
    has_ended,
    how_it_ended,
    start_child,
    stop_children,
)
from irpo_megatron.process import raise_error_of
from irpo_megatron.request_files import error_path, forget_stop, listening_path, stop_path

GRACE_SECONDS = 10.0
"""Between the polite signal and the other one."""
_POLL_SECONDS = 0.2
# Long enough to write a checkpoint of a large model.
_PATIENCE_SECONDS = 600.0


def supervise(
    command: Sequence[str],
    request: Path,
    *,
    threads: int,
    log: Path,
    watch: Callable[[], None],
    grace: float,
    grace_of_listeners: float,
) -> None:
    """Run the command of a stage and wait; its output is appended to `log`.

    After SIGTERM or SIGUSR1 a stage that listens (`irpo_megatron.stop`) has minutes to save; any other is stopped as by
    Ctrl-C. A second signal, and Ctrl-C, do not wait.

    Args:
        threads: CPU threads of each process.
        watch: Called a few times a second meanwhile.
        grace: Seconds between SIGTERM and SIGKILL where it is stopped.
        grace_of_listeners: The same where it listens to the driver, and takes SIGTERM for its own affair.

    Raises:
        UserError: the stage found a mistake of the user's.
        Interrupted: this process or the stage was sent a signal.
        StageError: the stage failed otherwise; names the log.
    """
    error_path(request).unlink(missing_ok=True)
    forget_stop(request)
    with first_signal() as first:
        child = start_child(command, threads=threads, log=log)
        try:
            _wait(child, request, first, watch, stage=log.stem)
        finally:
            listens = listening_path(request).exists()
            (status,) = stop_children([child], grace=grace_of_listeners if listens else grace)
            forget_stop(request)
    if first.name is not None and not (listens and error_path(request).exists()):
        raise Interrupted(_how_it_stopped(log.stem, first.name, listens=listens, status=status))
    if status != 0:
        raise_error_of(request, stage=log.stem, reason=how_it_ended(status), log=log)


def _how_it_stopped(stage: str, name: str, *, listens: bool, status: int) -> str:
    if status == 0:  # not committed yet, which can take long: that is left to the next start, which finds it complete
        return f"stopped by {name} after {stage}"
    return f"{stage} was stopped by {name}{' before it had saved' if listens else ''}"


def _wait(child: Child, request: Path, first: FirstSignal, watch: Callable[[], None], *, stage: str) -> None:
    """Until the stage has ended, or is to be stopped."""
    while not has_ended(child, within=_POLL_SECONDS):
        watch()
        if first.name is not None:
            break
    else:
        return
    stop_path(request).touch()
    if not listening_path(request).exists():
        return
    print(f"{first.name}: waiting for {stage} to save; a second signal does not wait", file=sys.stderr)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not has_ended(child, within=_POLL_SECONDS) and time.monotonic() < deadline:
        watch()
