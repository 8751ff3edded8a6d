"""What is seen of workers from outside: true while they run, and after they died."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.claims import dead_process, on_node

from irpo_megatron.artifacts import Progress, ProgressWriter, write_json
from irpo_megatron.claims import Claimant, how_far, view_claims
from irpo_megatron.claims.files import State, WorkerRecord, shard_path, workers_directory
from irpo_megatron.claims.process_identity import ProcessIdentity

SHARDS = {"x-0": 10, "x-1": 10, "x-2": 5}


@pytest.fixture
def say(tmp_path: Path) -> Callable[..., Path]:
    """Leave a worker's record in `tmp_path`, beside the plan of three shards of which one is there."""
    with Claimant(tmp_path, lease_seconds=60) as worker:
        worker.announce(SHARDS)
    shard_path(tmp_path, "x-0").touch()

    def leave(
        host: str, state: State = "sampling", *, identity: ProcessIdentity | None = None, **counts: object
    ) -> Path:
        path = workers_directory(tmp_path) / f"{host}.json"
        record = WorkerRecord(identity=identity or on_node(host), lease_seconds=60, state=state, **counts)  # type: ignore[arg-type]
        write_json(path, record.as_json())
        return path

    return leave


def test_nothing_has_been_said(tmp_path: Path) -> None:
    assert view_claims(tmp_path) is None
    assert how_far(tmp_path) is None


@pytest.mark.usefixtures("say")
def test_workers_that_have_ended_leave_what_is_there(tmp_path: Path) -> None:
    view = view_claims(tmp_path)
    assert view is not None
    assert (view.done, view.running, view.waiting, view.workers, view.seconds_left) == (1, 0, 2, (), None)
    assert how_far(tmp_path) == Progress(done=10, total=25, unit="samples")


def test_samples_under_way_count_while_their_worker_lives(tmp_path: Path, say: Callable[..., Path]) -> None:
    say("a", samples=16, tokens=640, seconds=4.0, running={"x-1": 6})
    path = say("b", samples=3, tokens=30, seconds=2.0, running={"x-2": 3})
    view = view_claims(tmp_path)
    assert view is not None
    assert view.progress == Progress(done=19, total=25, unit="samples")
    assert (view.done, view.running, view.waiting) == (1, 2, 0)
    assert view.seconds_left == pytest.approx(6 / (16 / 4 + 3 / 2))
    assert [(w.host, w.state, w.samples, w.tokens_per_second) for w in view.workers] == [
        ("a", "sampling", 16, 160.0),
        ("b", "sampling", 3, 15.0),
    ]
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    view = view_claims(tmp_path)
    assert view is not None
    assert view.progress.done == 16
    assert (view.running, view.waiting) == (1, 1)
    assert view.workers[1].state == "silent"
    assert view.workers[1].seconds_ago == pytest.approx(3600, abs=60)
    assert view.seconds_left == pytest.approx(9 / 4)


def test_a_worker_that_was_killed_here_is_dead_at_once(tmp_path: Path, say: Callable[..., Path]) -> None:
    say("a", identity=dead_process(), samples=6, seconds=1.0, running={"x-1": 6})
    view = view_claims(tmp_path)
    assert view is not None
    assert [worker.state for worker in view.workers] == ["dead"]
    assert (view.progress.done, view.running, view.waiting, view.seconds_left) == (10, 0, 2, None)


def test_a_shard_under_two_workers_counts_once(tmp_path: Path, say: Callable[..., Path]) -> None:
    """One of them has lost it, and has not heard of that yet."""
    say("a", running={"x-1": 6})
    say("b", running={"x-1": 2})
    assert how_far(tmp_path) == Progress(done=16, total=25, unit="samples")


def test_a_shard_that_is_published_no_longer_runs(tmp_path: Path, say: Callable[..., Path]) -> None:
    say("a", running={"x-0": 9})
    assert how_far(tmp_path) == Progress(done=10, total=25, unit="samples")


@pytest.mark.usefixtures("say")
def test_what_follows_the_sampling_counts_for_itself(tmp_path: Path) -> None:
    ProgressWriter(tmp_path, total=25, unit="verdicts", done=25)  # of an attempt before
    assert how_far(tmp_path) == Progress(done=10, total=25, unit="samples")
    for shard in SHARDS:
        shard_path(tmp_path, shard).touch()
    assert how_far(tmp_path) == Progress(done=25, total=25, unit="verdicts")
    (tmp_path / "progress.json").unlink()
    assert how_far(tmp_path) == Progress(done=25, total=25, unit="samples")
