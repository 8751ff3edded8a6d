"""A worker's signs of life, and the ways in which it hears that all are to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.claims import on_node
from support.obedient_driver import wait_for

from irpo_megatron.artifacts import read_json
from irpo_megatron.claims import Claimant, forget_attempt, raise_refusal
from irpo_megatron.claims.files import read_record, workers_directory
from irpo_megatron.errors import UserError

Join = Callable[..., Claimant]
MISTAKE = UserError("count = 13", "no count is 13", "count again")


def fail(partial: Path, error: Exception, *, holding: str | None = None) -> None:
    """A worker that ends by an error, with a shard in its hands."""
    with Claimant(partial, lease_seconds=60, identity=on_node("failing")) as worker:
        if holding is not None:
            worker.claim([holding])
        raise error


def sample_on(worker: Claimant, shard: str) -> None:
    """Sample until something happens."""

    def is_over() -> bool:
        worker.add(shard, tokens=1)
        return False

    wait_for(is_over)


def test_its_heart_beats_by_itself(tmp_path: Path) -> None:
    with Claimant(tmp_path, lease_seconds=0.5) as worker:
        path = workers_directory(tmp_path) / f"{worker.name}.json"
        record = read_record(path)
        assert record is not None
        assert record.state == "starting"
        first = record.beat
        wait_for(lambda: read_json(path)["beat"] > first + 1)
    ended = read_record(path)
    assert ended is not None
    assert ended.state == "ended"


def test_what_it_has_done_is_told(tmp_path: Path, join: Join) -> None:
    worker = join("a")
    worker.claim(["x"])
    worker.claim(["x", "y"])
    worker.enter("sampling")
    for tokens in (5, 7):
        worker.add("x", tokens=tokens)
    worker.add("y", tokens=1)
    worker.finish("x")
    worker.enter("waiting")
    record = read_record(workers_directory(tmp_path) / f"{worker.name}.json")
    assert record is not None
    assert (record.samples, record.tokens, record.running) == (3, 13, {"y": 1})
    assert record.seconds > 0
    assert record.identity == on_node("a")


def test_two_starts_of_one_process_are_two_workers(join: Join) -> None:
    assert join("a").name != join("a").name


def test_one_workers_mistake_ends_the_others_where_they_claim(tmp_path: Path, join: Join) -> None:
    other = join("other")
    with pytest.raises(UserError):
        fail(tmp_path, MISTAKE)
    with pytest.raises(UserError) as caught:
        other.claim(["x"])
    assert (caught.value.seen, caught.value.rule, caught.value.remedy) == (MISTAKE.seen, MISTAKE.rule, MISTAKE.remedy)
    with pytest.raises(UserError, match="count = 13"):
        raise_refusal(tmp_path)


def test_one_workers_mistake_ends_the_others_in_the_midst_of_a_shard(tmp_path: Path) -> None:
    with Claimant(tmp_path, lease_seconds=0.2) as worker:
        worker.claim(["x"])
        with pytest.raises(UserError):
            fail(tmp_path, MISTAKE)
        with pytest.raises(UserError, match="count = 13"):
            sample_on(worker, "x")


def test_the_first_mistake_counts(tmp_path: Path) -> None:
    for error in (MISTAKE, UserError("other", "other", "other")):
        with pytest.raises(UserError):
            fail(tmp_path, error)
    with pytest.raises(UserError, match="count = 13"):
        raise_refusal(tmp_path)


def test_a_defect_is_no_mistake_of_the_users(tmp_path: Path, join: Join) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path, ZeroDivisionError(), holding="x")
    assert join("b").claim(["x"]) == "x"


def test_a_directory_that_is_gone_ends_the_worker(tmp_path: Path) -> None:
    """One that stood still while others finished the stage must not go on."""
    partial = tmp_path / "x.partial"
    partial.mkdir()
    worker = Claimant(partial, lease_seconds=0.2)
    worker.__enter__()
    worker.claim(["x"])
    partial.rename(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        sample_on(worker, "x")
    with pytest.raises(FileNotFoundError):
        worker.__exit__(None, None, None)
    assert not partial.exists()


def test_an_attempt_is_forgotten_but_for_what_is_known_of_shards(tmp_path: Path) -> None:
    counts = tmp_path / "claims" / "counts" / "x.json"
    counts.parent.mkdir(parents=True)
    counts.write_text(json.dumps({"samples": 3}))
    with Claimant(tmp_path, lease_seconds=60) as worker:
        worker.announce({"x": 3})
    with pytest.raises(UserError):
        fail(tmp_path, MISTAKE, holding="x")
    forget_attempt(tmp_path)
    assert [path.name for path in (tmp_path / "claims").rglob("*") if path.is_file()] == ["x.json"]
    raise_refusal(tmp_path)
