"""A stage that does what its request tells it, for the tests of how stages are started; run as a child's module."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Literal

from irpo_megatron.artifacts import write_json
from irpo_megatron.errors import Interrupted, UserError
from irpo_megatron.requests import Request
from irpo_megatron.stop import stop_requests
from irpo_megatron.watchdog import Watchdog

# A helper process of the stage that does not listen to SIGTERM, and says when it no longer does.
_DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


class ObedientRequest(Request):
    """`output` is a folder that exists."""

    behaviour: Literal[
        "report",
        "blame the user",
        "fail",
        "die",
        "wait",
        "wait with helper",
        "wait deaf",
        "listen",
        "listen and save",
        "listen and end",
        "listen and fail",
        "listen and do not stop",
        "stall",
        "stall with the lock",
    ] = "report"


def run(request: ObedientRequest) -> None:
    """Leave a file for each rank that says who it is, then behave as told."""
    rank = os.environ.get("RANK", "0")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    processes = [os.getpid()]
    if request.behaviour == "wait deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if request.behaviour in ("die", "wait with helper", "wait deaf"):
        helper = subprocess.Popen([sys.executable, "-c", _DEAF], stdout=subprocess.PIPE)
        assert helper.stdout is not None
        helper.stdout.readline()
        processes.append(helper.pid)
    facts = {name: os.environ.get(name) for name in names}
    write_json(request.output / f"rank-{rank}.json", {**facts, "processes": processes, "stdin": sys.stdin.read()})
    print(f"rank {rank} was here")
    if request.behaviour == "blame the user" and rank == "0":
        while len(list(request.output.glob("rank-*.json"))) < int(os.environ.get("WORLD_SIZE", "1")):
            time.sleep(0.02)
        raise UserError("count = 13", "no count is 13", "count again")
    if request.behaviour == "fail":
        raise ZeroDivisionError("a defect")
    if request.behaviour == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request.behaviour.startswith("listen"):
        _listen(request, rank)
    elif request.behaviour.startswith("stall"):
        _stall(request, rank)
    elif request.behaviour not in ("report", "fail", "die"):
        time.sleep(600)


def _listen(request: ObedientRequest, rank: str) -> None:
    """Work until a stop is asked for; 'listen' alone only says whether it was."""
    with stop_requests() as stop:
        write_json(request.output / f"listening-{rank}.json", {"requested": stop.requested})
        if request.behaviour == "listen":
            return
        while not stop.requested or request.behaviour == "listen and do not stop":
            time.sleep(0.02)
        if request.behaviour == "listen and fail":
            raise ZeroDivisionError("a defect in saving")
        if request.behaviour == "listen and save":
            write_json(request.output / f"saved-{rank}.json", {})
            raise Interrupted("stopped after step 37 of 120")


def _stall(request: ObedientRequest, rank: str) -> None:
    """Rank 0 sleeps, the others wait for it; or all keep the interpreter's lock."""
    import torch.distributed as dist

    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    with Watchdog(2, rank=int(rank), grace=8) as dog:
        dog.beat("step 12")
        if request.behaviour == "stall with the lock":
            ctypes.PyDLL(None).sleep(600)
        elif rank == "0":
            time.sleep(600)
        else:
            time.sleep(0.7)  # ranks stall within moments of one another, not at once
            dog.beat("step 12")
            dist.barrier()
