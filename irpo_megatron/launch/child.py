"""A process of a stage on this machine: how it is started, watched and stopped, whatever is started in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from irpo_megatron.errors import Interrupted
from irpo_megatron.process import die_with_parent
from irpo_megatron.stop import on_stop_signal

_LOOK_SECONDS = 0.02
# timeout(1) sends its signal to a process and again to its group.
_ECHO_SECONDS = 1.0

Child = subprocess.Popen[bytes]


def start_child(
    command: Sequence[str], *, threads: int, log: Path, variables: Mapping[str, str] | None = None
) -> Child:
    """Start a command in a process group of its own, its output appended to `log`.

    Args:
        threads: CPU threads.
        variables: Further variables of its environment.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "TOKENIZERS_PARALLELISM": "false",
                "TQDM_DISABLE": "1",  # a log is no terminal
                "PYTHONUNBUFFERED": "1",
                **(variables or {}),
            },
            start_new_session=True,  # so that the whole group can be stopped
            preexec_fn=_prepare_child,
        )


def _prepare_child() -> None:
    """What happens between fork and exec."""
    die_with_parent()
    # Slurm may send it to every process, and torchrun would die of it, its ranks with it. Whoever listens undoes this.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def has_ended(child: Child, *, within: float = 0.0) -> bool:
    """Wait for a child without reaping it: until then, the number of its process group is its own."""
    deadline = time.monotonic() + within
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def stop_children(children: Sequence[Child], *, grace: float) -> list[int]:
    """Stop whatever is left of some children, ranks and helpers included: politely first; their exit statuses."""
    try:
        for child in children:
            if not has_ended(child):
                os.killpg(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        for child in children:
            has_ended(child, within=max(0.0, deadline - time.monotonic()))
    finally:  # also when another signal or Ctrl-C cuts the politeness short
        for child in children:
            os.killpg(child.pid, signal.SIGKILL)
        statuses = [child.wait() for child in children]
    return statuses


def how_it_ended(status: int) -> str:
    """An exit status in words; srun, like a shell, adds 128 to the number of a signal."""
    number = -status if status < 0 else status - 128
    if number in signal.valid_signals():
        return f"was killed by {signal.Signals(number).name}"
    return f"exited with status {status}"


class FirstSignal:
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
def first_signal() -> Iterator[FirstSignal]:
    """Take note of SIGTERM and SIGUSR1 in a block."""
    first = FirstSignal()
    with on_stop_signal(first):
        yield first
