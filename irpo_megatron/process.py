"""A stage in a process of its own: how it reads its request and how it says what went wrong.

    python -m irpo_megatron.process irpo_megatron.pairs.stage REQUEST.json

Engines that cannot share an interpreter never meet, a stage's memory is back when it ends, and a kill takes one stage.
This module is the `__main__` of every stage and imports nothing heavy: Megatron-Core's checkpoint writer spawns a
helper process, and a spawned process imports `__main__` again.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import signal
import socket
import sys
import traceback
import typing
from pathlib import Path
from typing import NoReturn

from irpo_megatron.artifacts import Json, read_json
from irpo_megatron.environment import describe_software
from irpo_megatron.errors import Interrupted, StageError, UserError
from irpo_megatron.lasting import end_without_a_search, lasting
from irpo_megatron.rank_log import Member, event, note, rank_log
from irpo_megatron.request_files import error_path, leave_error, working_on

logger = logging.getLogger("irpo_megatron.process")  # by name: this module is `__main__`

# Looked up at import: between fork and exec nothing may be loaded.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def main(module_name: str, request_path: Path) -> int:
    """Import the stage, read its request, run it; what it says goes into its logs (`irpo_megatron.rank_log`).

    Returns:
        The exit status: 0, 2 for a `UserError`, 75 for a stage that was asked to stop and has saved, or 1 for any other
        exception. What happened is also left beside the request, for the loop to pass on.
    """
    die_with_parent()
    # A checkpoint's writers, which a rank forks: without it they would wait for its answer for ever.
    os.register_at_fork(after_in_child=die_with_parent)
    with rank_log(request_path) as member:
        status, reason = _run(module_name, request_path, member)
        if reason is not None:
            sys.stderr.write(f"{member.prefix}{reason}\n")  # in one piece: ranks share the log
        logger.info("ends with status %d", status, extra=event("end", status=status))
    return status


def _run(module_name: str, request_path: Path, member: Member) -> tuple[int, str | None]:
    """The exit status, and what the log of the stage is to say of it.

    Where ranks share that log, the first says how a stage ended early, with its traceback where it failed: the others
    end because it is gone. Each has its own among its events.
    """

    def is_told(what: Json) -> bool:
        return leave_error(request_path, what) or member.has_own_log

    try:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        start = event("start", module=module_name, processes=processes, **describe_software())
        logger.info("%s starts on %s, processes: %d", module_name, socket.gethostname(), processes, extra=start)
        with lasting():
            module = importlib.import_module(module_name)
        request_type = typing.get_type_hints(module.run)["request"]
        with working_on(request_path):
            module.run(request_type.model_validate(read_json(request_path)))
    except UserError as error:
        what = {"seen": error.seen, "rule": error.rule, "remedy": error.remedy}
        note("refusal", **what)
        return 2, f"error: {error}" if is_told(what) else None
    except Interrupted as stop:
        note("stop", message=str(stop))
        return os.EX_TEMPFAIL, str(stop) if is_told({"interrupted": str(stop)}) else None
    except BaseException as error:  # torch's failures to load a checkpoint are no Exception
        failure, stack = f"{type(error).__name__}: {error}", traceback.format_exc().rstrip()
        note("failure", exception=stack)
        return 1, stack if is_told({"failure": failure}) else failure
    return 0, None


def raise_error_of(request_path: Path, *, stage: str, reason: str, log: Path) -> NoReturn:
    """Raise what a stage's process left behind when it failed.

    Raises:
        UserError: the process said that this is what it was.
        Interrupted: so it is with this one.
        StageError: otherwise; `reason` is how the process ended.
    """
    path = error_path(request_path)
    left = read_json(path) if path.is_file() else {}
    if "seen" in left:
        raise UserError(**left)
    if "interrupted" in left:
        raise Interrupted(f"{stage} {left['interrupted']}")
    why = f": {left['failure']}" if "failure" in left else ""
    raise StageError(f"{stage} {reason}{why}\n  log:    {log}")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that a killed run leaves nobody writing to it."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    end_without_a_search()
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
if (
    __name__ == "__mp_main__"
):  # a helper that the stage spawned: torchrun kills a rank, but not what the rank has started
    die_with_parent()
