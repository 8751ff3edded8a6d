"""A worker that publishes empty shards and dies as it is told, for the tests of how workers are started."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Literal

from irpo_megatron.artifacts import write_json
from irpo_megatron.claims import Claimant
from irpo_megatron.claims.files import shard_path
from irpo_megatron.errors import UserError
from irpo_megatron.requests import Request
from irpo_megatron.stop import interrupt, on_stop_signal

Behaviour = Literal["work", "die at each shard", "die at once", "blame the user", "fail", "hold a shard", "stand still"]
SHARDS = tuple(f"x-{number}" for number in range(12))


class WorkerOrder(Request):
    """What to do says the variable BEHAVIOUR of the environment, so that each worker may do something else."""


def run(request: WorkerOrder) -> None:
    """Leave a file that says who this is, then behave as told."""
    behaviour = os.environ["BEHAVIOUR"]
    write_json(
        request.output / f"life-{os.getpid()}.json",
        {"behaviour": behaviour, "pid": os.getpid(), "devices": os.environ.get("CUDA_VISIBLE_DEVICES")},
    )
    with on_stop_signal(interrupt), Claimant(request.output, lease_seconds=60) as claimant:
        claimant.announce(dict.fromkeys(SHARDS, 1))
        if behaviour == "blame the user":
            raise UserError("count = 13", "no count is 13", "count again")
        if behaviour == "fail":
            raise ZeroDivisionError("a defect")
        if behaviour == "die at once":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "stand still":
            os.kill(os.getpid(), signal.SIGSTOP)
        if behaviour == "hold a shard":
            claimant.claim(SHARDS)
        while left := [shard for shard in SHARDS if not shard_path(request.output, shard).exists()]:
            shard = None if behaviour == "hold a shard" else claimant.claim(left)
            if shard is None:
                time.sleep(0.02)
                continue
            shard_path(request.output, shard).touch()
            claimant.finish(shard)
            if behaviour == "die at each shard":
                os.kill(os.getpid(), signal.SIGKILL)


def lives(partial: Path) -> list[Path]:
    """A file for each start of a worker."""
    return sorted(partial.glob("life-*.json"))
