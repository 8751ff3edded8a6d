"""Workers on this machine: independent processes that share the shards of one stage through its directory.

None of them is needed: where one dies, the others take over what it had, and it is started again a few times.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.claims import forget_attempt, raise_refusal
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
from irpo_megatron.launch.supervision import GRACE_SECONDS
from irpo_megatron.process import raise_error_of
from irpo_megatron.rank_log import WORKER
from irpo_megatron.request_files import error_path

_POLL_SECONDS = 0.2
# Once everything is there, the others notice within a second; shutting an engine down takes longer.
_LEAVE_SECONDS = 30.0
_RESTARTS = 3
_USER_ERROR = 2


@dataclass
class _Worker:
    """One of the workers, through all its lives."""

    number: int
    log: Path
    variables: Mapping[str, str]
    child: Child | None = None
    restarts: int = 0
    published: int = 0
    """Shards that were there when it was started last."""


def run_workers(
    module: str,
    request: Path,
    partial: Path,
    *,
    variables: Sequence[Mapping[str, str]],
    threads: int,
    logs: Path,
    watch: Callable[[], None],
    say: Callable[[str], None],
    python: Path | None = None,
) -> None:
    """Run `module` on `request` in several processes, until one of them finds everything done.

    A worker that dies is named, and started again up to three times, if shards were published since its last start:
    one that dies at once would die again.

    Args:
        partial: Where the workers claim shards.
        variables: For each worker, further variables of its environment.
        threads: CPU threads of each.
        logs: `a/b` stands for `a/b-worker-0.log`, ...; a stage that goes on appends to them.
        watch: Called a few times a second meanwhile.
        say: Is told of each worker that died.
        python: The interpreter, of another environment that has this package too; None is this one.

    Raises:
        UserError: a worker found a mistake of the user's; the others were stopped.
        Interrupted: this process was sent a signal; the workers were stopped, and what they published is kept.
        StageError: all workers died; names the logs.
    """
    forget_attempt(partial)
    error_path(request).unlink(missing_ok=True)
    workers = [
        _Worker(number, logs.with_name(f"{logs.name}-worker-{number}.log"), {**extra, WORKER: str(number)})
        for number, extra in enumerate(variables)
    ]

    def start(worker: _Worker) -> None:
        worker.published = _published(partial)
        command = [str(python or sys.executable), "-m", "irpo_megatron.process", module, str(request)]
        worker.child = start_child(command, threads=threads, log=worker.log, variables=worker.variables)

    last = 0
    with first_signal() as first:
        try:
            for worker in workers:
                start(worker)
            last = _watch_over(workers, partial, first, start=start, watch=watch, say=say)
        finally:
            stop_children([worker.child for worker in workers if worker.child is not None], grace=GRACE_SECONDS)
    raise_refusal(partial)
    if first.name is not None:
        raise Interrupted(f"{logs.name} was stopped by {first.name}")
    if last != 0:
        log = workers[0].log if len(workers) == 1 else logs.with_name(f"{logs.name}-worker-*.log")
        reason = how_it_ended(last) if len(workers) == 1 else f"lost all its workers; the last one {how_it_ended(last)}"
        raise_error_of(request, stage=logs.name, reason=reason, log=log)


def _watch_over(
    workers: Sequence[_Worker],
    partial: Path,
    first: FirstSignal,
    *,
    start: Callable[[_Worker], None],
    watch: Callable[[], None],
    say: Callable[[str], None],
) -> int:
    """Until everything is done, a mistake is found, all have died, or a signal came.

    Returns:
        The exit status of the worker that ended last, or that has found everything done.
    """
    status, deadline = 0, None
    while (living := [worker for worker in workers if worker.child is not None]) and first.name is None:
        if deadline is not None and time.monotonic() > deadline:
            break  # what stands still when all is done is not waited for
        assert living[0].child is not None
        has_ended(living[0].child, within=_POLL_SECONDS)
        watch()
        for worker in living:
            assert worker.child is not None
            if not has_ended(worker.child):
                continue
            (ended,) = stop_children([worker.child], grace=0)  # helpers that it left behind, too
            worker.child = None
            if ended == 0:
                status, deadline = 0, deadline or time.monotonic() + _LEAVE_SECONDS
            elif deadline is None:
                status = ended
                if ended == _USER_ERROR:
                    return status
                again = worker.restarts < _RESTARTS and _published(partial) > worker.published
                say(
                    f"worker {worker.number} {how_it_ended(ended)}{', and is started again' if again else ''}: "
                    f"{worker.log}"
                )
                if again:
                    worker.restarts += 1
                    start(worker)
    return status


def _published(partial: Path) -> int:
    """How many shards are there, those of earlier attempts included."""
    return sum(1 for _ in partial.rglob("[!.]*.parquet"))
