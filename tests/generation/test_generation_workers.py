"""Several workers over one directory: killed, paused and started again, they leave what one undisturbed worker does."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from support.generation import make_request
from support.obedient_driver import wait_for
from support.worker_pool import start_worker

from irpo_megatron.artifacts import write_json
from irpo_megatron.claims import how_far, view_claims
from irpo_megatron.claims.files import workers_directory
from irpo_megatron.records import Problem, Sample, read_rows, write_rows
from irpo_megatron.requests import WorkerRequest

KILLS = 20
WORKERS = 6
PROBLEMS = 150
SAMPLES = 3


@pytest.fixture(scope="module")
def many_problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    draw = random.Random(1)
    rows = [
        Problem(id=f"train-{n:06d}", question=f"{draw.randrange(10**6)}+1", answer="H", solution="1" * (n % 9))
        for n in range(PROBLEMS)
    ]
    write_rows(folder / "train.parquet", rows, Problem)
    return folder


@pytest.fixture
def request_file(tmp_path: Path, many_problems: Path, digits_folder: Path) -> Path:
    """A request to sample a shard a prompt into `tmp_path / "shared"`."""
    request = make_request(
        tmp_path / "shared", many_problems, digits_folder, samples=SAMPLES, shard_prompts=1, batch_size=2
    )
    path = tmp_path / "request.json"
    write_json(path, WorkerRequest.of(request).model_dump(mode="json"))
    return path


def shards(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.parquet")}


def sampling(directory: Path, workers: list[ForkServerProcess]) -> list[ForkServerProcess]:
    """Those that are in the midst of their work."""
    view = view_claims(directory)
    assert view is not None
    pids = {worker.pid for worker in view.workers if worker.state == "sampling"}
    return [worker for worker in workers if worker.pid in pids]


def undisturbed(tmp_path: Path, many_problems: Path, digits_folder: Path) -> dict[str, bytes]:
    """What one worker leaves, with all requests in one batch."""
    request = make_request(tmp_path / "alone", many_problems, digits_folder, samples=SAMPLES, shard_prompts=1)
    path = tmp_path / "alone.json"
    write_json(path, WorkerRequest.of(request).model_dump(mode="json"))
    worker = start_worker(path)
    worker.join()
    assert worker.exitcode == 0
    return shards(tmp_path / "alone")


def test_killed_twenty_times_six_workers_leave_what_one_does(
    tmp_path: Path, request_file: Path, many_problems: Path, digits_folder: Path
) -> None:
    expected = undisturbed(tmp_path, many_problems, digits_folder)
    assert len(expected) == PROBLEMS
    directory = tmp_path / "shared"
    draw = random.Random(20241121)
    workers = [start_worker(request_file) for _ in range(WORKERS)]
    for kill in range(1, KILLS + 1):
        # Spread over the work, so that all of them fall into it; the moment within a shard is chance.
        wait_for(lambda enough=kill * (PROBLEMS // (KILLS + 2)): len(list(directory.glob("*.parquet"))) >= enough)
        wait_for(lambda: sampling(directory, workers))
        time.sleep(draw.uniform(0, 0.02))
        victim = draw.choice(sampling(directory, workers))
        victim.kill()
        victim.join()
        workers[workers.index(victim)] = start_worker(request_file)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * WORKERS
    rows = [row for path in sorted(directory.glob("*.parquet")) for row in read_rows(path, Sample)]
    once = Counter((row.prompt_id, row.sample_index) for row in rows)
    assert once == Counter((f"train-{n:06d}", k) for n in range(PROBLEMS) for k in range(SAMPLES))
    assert shards(directory) == expected
    assert len(list(workers_directory(directory).glob("[!.]*.json"))) == WORKERS + KILLS
    progress = how_far(directory)
    assert progress is not None
    assert (progress.done, progress.total) == (PROBLEMS * SAMPLES, PROBLEMS * SAMPLES)


def test_one_that_is_paused_for_longer_than_a_lease_changes_nothing(
    tmp_path: Path, many_problems: Path, digits_folder: Path
) -> None:
    """It holds shards, the other one takes them over and ends; when it wakes up, it finds everything done."""
    request = make_request(
        tmp_path / "shared", many_problems, digits_folder, samples=2, shard_prompts=30, batch_size=1, lease_seconds=0.5
    )
    path = tmp_path / "request.json"
    write_json(path, WorkerRequest.of(request).model_dump(mode="json"))
    directory = tmp_path / "shared"
    sleeper = start_worker(path)
    wait_for(lambda: (view := view_claims(directory)) is not None and view.running > 0)
    assert sleeper.pid is not None
    os.kill(sleeper.pid, signal.SIGSTOP)
    other = start_worker(path)
    other.join()
    assert other.exitcode == 0
    made = shards(directory)
    assert len(made) == PROBLEMS // 30
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join()
    assert sleeper.exitcode == 0
    assert shards(directory) == made
    assert not list(directory.glob(".*"))


def test_a_worker_that_is_asked_to_end_gives_its_shards_back(request_file: Path, tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    worker = start_worker(request_file)
    wait_for(lambda: (view := view_claims(directory)) is not None and view.running > 0)
    worker.terminate()
    worker.join()
    assert worker.exitcode != 0
    view = view_claims(directory)
    assert view is not None
    assert (view.running, view.workers) == (0, ())
