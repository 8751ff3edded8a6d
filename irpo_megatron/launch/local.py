"""Stages on this machine: one process, or several under torchrun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from irpo_megatron.errors import Interrupted
from irpo_megatron.process import die_with_parent, raise_error_of
from irpo_megatron.request_files import error_path, forget_stop, listening_path, stop_path
from irpo_megatron.stop import on_stop_signal

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 0.02
_GRACE_SECONDS = 10.0
# A stage that listens only takes note of SIGTERM: this is for torchrun and for helpers of the stage.
_GRACE_OF_LISTENERS_SECONDS = 1.0
# Long enough to write a checkpoint of a large model.
_PATIENCE_SECONDS = 600.0
# timeout(1) sends its signal to a process and again to its group.
_ECHO_SECONDS = 1.0


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
    """Run `module` on `request` and wait; its output is appended to `log`.

    After SIGTERM or SIGUSR1 a stage that listens (`irpo_megatron.stop`) has minutes to save; any other is stopped as by
    Ctrl-C. A second signal, and Ctrl-C, do not wait.

    Args:
        processes: World size; above 1 torchrun starts the ranks.
        threads: CPU threads of each process.
        watch: Called a few times a second meanwhile.
        python: The interpreter, of another environment that has this package too; None is this one.

    Raises:
        UserError: the stage found a mistake of the user's.
        Interrupted: this process or the stage was sent a signal.
        StageError: the stage failed otherwise; names the log.
    """
    command = ["-m", "irpo_megatron.process", module, str(request)]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*torchrun, *command]
    error_path(request).unlink(missing_ok=True)
    forget_stop(request)
    with log.open("ab") as output, _first_signal() as first:
        child = subprocess.Popen(
            [str(python or sys.executable), *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(os.environ, threads),
            start_new_session=True,  # so that the whole group can be stopped
            preexec_fn=_prepare_child,
        )
        try:
            _wait(child, request, first, watch, stage=log.stem)
        finally:
            listens = listening_path(request).exists()
            status = _stop(child, grace=_GRACE_OF_LISTENERS_SECONDS if listens else _GRACE_SECONDS)
            forget_stop(request)
    if first.name is not None and not (listens and error_path(request).exists()):
        raise Interrupted(_how_it_stopped(log.stem, first.name, listens=listens, status=status))
    if status == 0:
        return
    reason = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    raise_error_of(request, stage=log.stem, reason=reason, log=log)


def _how_it_stopped(stage: str, name: str, *, listens: bool, status: int) -> str:
    if status == 0:  # not committed yet, which can take long: that is left to the next start, which finds it complete
        return f"stopped by {name} after {stage}"
    return f"{stage} was stopped by {name}{' before it had saved' if listens else ''}"


def _prepare_child() -> None:
    """What happens between fork and exec."""
    die_with_parent()
    # Slurm may send it to every process, and torchrun would die of it, its ranks with it. Whoever listens undoes this.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    return {**inherited, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


class _FirstSignal:
    """A handler that takes note of one signal; a second one is an exception."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._when = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.name is None:
            self.name, self._when = signal.Signals(number).name, now
        elif now - self._when > _ECHO_SECONDS:
            raise Interrupted(f"stopped at once by a second signal, {signal.Signals(number).name}")


@contextlib.contextmanager
def _first_signal() -> Iterator[_FirstSignal]:
    first = _FirstSignal()
    with on_stop_signal(first):
        yield first


def _wait(
    child: subprocess.Popen[bytes], request: Path, first: _FirstSignal, watch: Callable[[], None], *, stage: str
) -> None:
    """Until the stage has ended, or is to be stopped."""
    while not _has_ended(child, within=_POLL_SECONDS):
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
    while not _has_ended(child, within=_POLL_SECONDS) and time.monotonic() < deadline:
        watch()


def _has_ended(child: subprocess.Popen[bytes], *, within: float) -> bool:
    """Wait for a child without reaping it: until then, the number of its process group is its own."""
    deadline = time.monotonic() + within
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _stop(child: subprocess.Popen[bytes], *, grace: float) -> int:
    """Stop whatever is left of a stage, ranks and helpers included: politely first; its exit status."""
    try:
        if not _has_ended(child, within=0):
            os.killpg(child.pid, signal.SIGTERM)
            _has_ended(child, within=grace)
    finally:  # also when another signal or Ctrl-C cuts the politeness short
        os.killpg(child.pid, signal.SIGKILL)
        status = child.wait()
    return status
