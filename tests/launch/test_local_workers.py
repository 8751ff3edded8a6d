"""Workers as processes of their own: one dies and the others go on, all die and it is told, none is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support import obedient_worker
from support.events import events_of
from support.obedient_driver import assert_gone, python_path
from support.obedient_worker import SHARDS, WorkerOrder, lives

from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.errors import Interrupted, StageError, UserError
from irpo_megatron.launch import local_workers
from irpo_megatron.launch.local_workers import run_workers
from irpo_megatron.request_files import events_path


@pytest.fixture(autouse=True)
def importable_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children import `support` too."""
    monkeypatch.setenv("PYTHONPATH", python_path())


@pytest.fixture
def said() -> list[str]:
    """What was told of workers that died."""
    return []


@pytest.fixture
def start(tmp_path: Path, said: list[str]) -> Callable[..., None]:
    """Run a worker for each of some behaviours; they share `tmp_path / "out"`."""

    def run(*behaviours: str, watch: Callable[[], None] = lambda: None) -> None:
        output = tmp_path / "out"
        output.mkdir(exist_ok=True)
        write_json(tmp_path / "request.json", WorkerOrder(output=output, iteration=1).model_dump(mode="json"))
        run_workers(
            obedient_worker.__name__,
            tmp_path / "request.json",
            output,
            variables=[{"BEHAVIOUR": behaviour} for behaviour in behaviours],
            threads=1,
            logs=tmp_path / "stage",
            watch=watch,
            say=said.append,
        )

    return run


def published(tmp_path: Path) -> int:
    return len(list((tmp_path / "out").glob("*.parquet")))


def pids(tmp_path: Path) -> list[int]:
    return [read_json(path)["pid"] for path in lives(tmp_path / "out")]


def test_workers_share_the_work_and_end(tmp_path: Path, start: Callable[..., None], said: list[str]) -> None:
    start("work", "work", "work")
    assert published(tmp_path) == len(SHARDS)
    assert len(lives(tmp_path / "out")) == 3
    assert not said
    assert sorted(path.name for path in tmp_path.glob("*.log")) == [f"stage-worker-{n}.log" for n in range(3)]
    for number in range(3):
        events = events_of(events_path(tmp_path / "request.json") / f"worker-000{number}.jsonl")
        assert [(event["event"], event["worker"]) for event in events] == [("start", number), ("end", number)]


def test_one_that_dies_again_and_again_is_named_and_does_not_end_the_stage(
    tmp_path: Path, start: Callable[..., None], said: list[str]
) -> None:
    start("die at each shard", "hold a shard", watch=lambda: finish_when_dead(tmp_path, said))
    log = tmp_path / "stage-worker-0.log"
    again = f"worker 0 was killed by SIGKILL, and is started again: {log}"
    assert said == [again, again, again, f"worker 0 was killed by SIGKILL: {log}"]
    assert len(lives(tmp_path / "out")) == 4 + 1
    assert_gone(pids(tmp_path))


def finish_when_dead(tmp_path: Path, said: list[str]) -> None:
    """Publish the rest once the worker has died for the last time."""
    if len(said) == 4:
        for shard in SHARDS:
            (tmp_path / "out" / f"{shard}.parquet").touch()


def test_one_that_dies_at_once_would_die_again(tmp_path: Path, start: Callable[..., None]) -> None:
    with pytest.raises(StageError) as caught:
        start("die at once")
    assert str(caught.value) == f"stage was killed by SIGKILL\n  log:    {tmp_path / 'stage-worker-0.log'}"
    assert len(lives(tmp_path / "out")) == 1


def test_all_dead(tmp_path: Path, start: Callable[..., None], said: list[str]) -> None:
    with pytest.raises(StageError) as caught:
        start("fail", "fail")
    assert "stage lost all its workers; the last one exited with status 1: ZeroDivisionError: a defect" in str(
        caught.value
    )
    assert str(caught.value).endswith(f"log:    {tmp_path / 'stage-worker-*.log'}")
    assert len(said) == 2


def test_a_mistake_of_the_users_ends_all_at_once(
    tmp_path: Path, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "GRACE_SECONDS", 0.3)
    with pytest.raises(UserError, match="count = 13"):
        start("hold a shard", "blame the user", "stand still")
    assert_gone(pids(tmp_path))
    start("work")  # what was said is not said again
    assert published(tmp_path) == len(SHARDS)


def test_one_that_stands_still_is_not_waited_for(
    tmp_path: Path, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "_LEAVE_SECONDS", 0.3)
    monkeypatch.setattr(local_workers, "GRACE_SECONDS", 0.3)
    start("work", "stand still")
    assert published(tmp_path) == len(SHARDS)
    assert_gone(pids(tmp_path))


def test_a_signal_stops_all(tmp_path: Path, start: Callable[..., None]) -> None:
    def watch() -> None:
        if len(lives(tmp_path / "out")) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"^stage was stopped by SIGTERM$"):
        start("hold a shard", "hold a shard", watch=watch)
    assert_gone(pids(tmp_path))


def test_ctrl_c_stops_all(tmp_path: Path, start: Callable[..., None]) -> None:
    def watch() -> None:
        if len(lives(tmp_path / "out")) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start("hold a shard", "hold a shard", watch=watch)
    assert_gone(pids(tmp_path))
