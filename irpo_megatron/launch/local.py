"""Stages on this machine: one process, or several under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from irpo_megatron.process import die_with_parent, error_path, raise_error_of

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 0.02
_GRACE_SECONDS = 10.0


def run_stage_process(
    module: str,
    request: Path,
    *,
    processes: int,
    threads: int,
    log: Path,
    watch: Callable[[], None],
) -> None:
    """Run `module` on `request` and wait; its output is appended to `log`.

    Args:
        processes: World size; above 1 torchrun starts the ranks.
        threads: CPU threads of each process.
        watch: Called a few times a second meanwhile.

    Raises:
        UserError: the stage found a mistake of the user's.
        StageError: the stage failed otherwise; names the log.
    """
    command = ["-m", "irpo_megatron.process", module, str(request)]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*torchrun, *command]
    error_path(request).unlink(missing_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(os.environ, threads),
            start_new_session=True,  # so that the whole group can be stopped
            preexec_fn=die_with_parent,
        )
        try:
            while not _has_ended(child, within=_POLL_SECONDS):
                watch()
        finally:
            status = _stop(child)
    if status == 0:
        return
    reason = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    raise_error_of(request, stage=log.stem, reason=reason, log=log)


def _environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    return {**inherited, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def _has_ended(child: subprocess.Popen[bytes], *, within: float) -> bool:
    """Wait for a child without reaping it: until then, the number of its process group is its own."""
    deadline = time.monotonic() + within
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _stop(child: subprocess.Popen[bytes]) -> int:
    """Stop whatever is left of a stage, ranks and helpers included: politely first; its exit status."""
    if not _has_ended(child, within=0):
        os.killpg(child.pid, signal.SIGTERM)
        _has_ended(child, within=_GRACE_SECONDS)
    os.killpg(child.pid, signal.SIGKILL)
    return child.wait()
