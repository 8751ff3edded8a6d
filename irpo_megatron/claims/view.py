"""What workers do, as their files say: for whoever watches, while they run and after they died."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.artifacts import Progress, read_json, read_progress
from irpo_megatron.claims.files import WorkerRecord, plan_path, read_record, shard_path, workers_directory


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """A worker as it looks from outside."""

    host: str
    pid: int
    state: str
    """What it says that it does; `dead` where its process is known to be gone, `silent` where it has said nothing for
    longer than a lease lasts."""
    samples: int
    tokens_per_second: float | None
    """While it samples; None before it has."""
    seconds_ago: float
    """Since its last sign of life, by the clock of the file system's machine and of this one."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How far a stage is that workers share."""

    progress: Progress
    """In samples: those of published shards, and those that living workers have of others."""
    done: int
    """Shards."""
    running: int
    waiting: int
    workers: tuple[WorkerView, ...]
    """In order of their names, the ones that ended well left out."""
    seconds_left: float | None
    """At the rate of the workers that sample now; None where none does."""


def view_claims(partial: Path) -> View | None:
    """What the workers in `partial` have done and do; None before they have said what there is to do."""
    if not plan_path(partial).is_file():
        return None
    shards: dict[str, int] = read_json(plan_path(partial))
    missing = {shard: samples for shard, samples in shards.items() if not shard_path(partial, shard).exists()}
    workers: list[WorkerView] = []
    running: dict[str, int] = {}
    rate = 0.0
    for path in sorted(workers_directory(partial).glob("[!.]*.json")):
        record = read_record(path)
        if record is None or record.state == "ended":
            continue
        worker = _view(record, seconds_ago=max(0.0, time.time() - path.stat().st_mtime))
        workers.append(worker)
        if worker.state in ("dead", "silent"):
            continue
        for shard in record.running.keys() & missing.keys():
            running[shard] = max(record.running[shard], running.get(shard, 0))
        if worker.state == "sampling" and record.seconds > 0:
            rate += record.samples / record.seconds
    total, left = sum(shards.values()), sum(missing.values()) - sum(running.values())
    return View(
        progress=Progress(done=total - left, total=total, unit="samples"),
        done=len(shards) - len(missing),
        running=len(running),
        waiting=len(missing) - len(running),
        workers=tuple(workers),
        seconds_left=left / rate if rate else None,
    )


def is_all_there(partial: Path) -> bool:
    """Whether every shard is published."""
    view = view_claims(partial)
    return view is not None and view.running + view.waiting == 0


def how_far(partial: Path) -> Progress | None:
    """How far a stage is, whether one process writes that down or workers share it; None before they have said so."""
    view = view_claims(partial)
    if view is not None and view.running + view.waiting > 0:
        return view.progress
    written = read_progress(partial)  # what follows the sampling writes its own
    return written if written is not None or view is None else view.progress


def _view(record: WorkerRecord, *, seconds_ago: float) -> WorkerView:
    silent = seconds_ago > record.lease_seconds
    return WorkerView(
        host=record.identity.host,
        pid=record.identity.pid,
        state="dead" if record.identity.is_gone() else "silent" if silent else record.state,
        samples=record.samples,
        tokens_per_second=record.tokens_per_second,
        seconds_ago=seconds_ago,
    )
