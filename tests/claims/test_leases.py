"""Leases: one holder a shard, taken over from the dead and from nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.claims import LEASE_SECONDS, Clock, dead_process, on_node

from irpo_megatron.artifacts import write_json
from irpo_megatron.claims import Claimant
from irpo_megatron.claims.files import WorkerRecord, shard_path, workers_directory
from irpo_megatron.claims.leases import Leases
from irpo_megatron.claims.process_identity import ProcessIdentity

Join = Callable[..., Claimant]


def publish(partial: Path, shard: str) -> None:
    shard_path(partial, shard).parent.mkdir(parents=True, exist_ok=True)
    shard_path(partial, shard).touch()


def leases(partial: Path) -> set[str]:
    directory = partial / "claims" / "leases"
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_each_shard_has_one_holder(tmp_path: Path, join: Join) -> None:
    a, b = join("a"), join("b")
    shards = ["x-0", "deep/er/x-1", "x-2"]
    assert [a.claim(shards), b.claim(shards), a.claim(shards)] == shards
    assert b.claim(shards) is None
    assert [[worker.holds(shard) for shard in shards] for worker in (a, b)] == [
        [True, False, True],
        [False, True, False],
    ]
    assert leases(tmp_path) == {"x-0.0", "deep/er/x-1.0", "x-2.0"}


def test_shards_are_taken_in_the_order_that_they_are_asked_for(join: Join) -> None:
    worker = join("a")
    assert [worker.claim(["z", "a", "m"]) for _ in range(4)] == ["z", "a", "m", None]


def test_what_is_published_is_not_claimed(tmp_path: Path, join: Join) -> None:
    publish(tmp_path, "x-0")
    assert join("a").claim(["x-0"]) is None
    assert not leases(tmp_path)


def test_a_holder_that_gives_signs_of_life_keeps_its_shard(join: Join, clock: Clock) -> None:
    a, b = join("a"), join("b")
    a.claim(["x"])
    for _ in range(5):
        assert b.claim(["x"]) is None
        clock.now += 0.9 * LEASE_SECONDS
        a.enter("sampling")
    assert a.holds("x")


def silent(partial: Path, name: str, identity: ProcessIdentity) -> Leases:
    """A worker without a heartbeat."""
    path = workers_directory(partial) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, WorkerRecord(identity=identity, lease_seconds=LEASE_SECONDS).as_json())
    return Leases(partial, name, lease_seconds=LEASE_SECONDS)


def test_a_silent_holder_loses_its_shard_by_the_clock_of_whoever_waits(
    tmp_path: Path, join: Join, clock: Clock
) -> None:
    zombie = silent(tmp_path, "zombie", on_node("z"))
    assert zombie.take(["x"]) == "x"
    b = join("b")
    assert b.claim(["x"]) is None  # seen for the first time: its silence counts from now
    clock.now += LEASE_SECONDS - 1
    assert b.claim(["x"]) is None
    late = join("late")
    assert late.claim(["x"]) is None
    clock.now += 1
    assert b.claim(["x"]) == "x"
    assert late.claim(["x"]) is None
    assert leases(tmp_path) == {"x.0", "x.1"}
    assert not zombie.holds("x")  # when it wakes up
    assert b.holds("x")


def test_one_heartbeat_begins_the_wait_anew(tmp_path: Path, join: Join, clock: Clock) -> None:
    slow = silent(tmp_path, "slow", on_node("s"))
    slow.take(["x"])
    b = join("b")
    assert b.claim(["x"]) is None
    clock.now += LEASE_SECONDS - 1
    record = WorkerRecord(identity=on_node("s"), lease_seconds=LEASE_SECONDS, beat=1)
    write_json(workers_directory(tmp_path) / "slow.json", record.as_json())
    clock.now += 2
    assert b.claim(["x"]) is None
    clock.now += LEASE_SECONDS
    assert b.claim(["x"]) == "x"


def test_a_dead_process_of_this_machine_loses_its_shard_at_once(tmp_path: Path, join: Join) -> None:
    silent(tmp_path, "dead", dead_process()).take(["x"])
    assert join("b").claim(["x"]) == "x"


def test_a_worker_that_leaves_gives_back_what_it_has(tmp_path: Path, join: Join) -> None:
    b = join("b")
    with Claimant(tmp_path, lease_seconds=LEASE_SECONDS, identity=on_node("a")) as a:
        assert a.claim(["x", "y"]) == "x"
        assert b.claim(["x", "y"]) == "y"
        assert b.claim(["x", "y"]) is None
    assert b.claim(["x", "y"]) == "x"


def test_a_shard_that_was_given_back_and_taken_is_not_given_away_again(
    tmp_path: Path, join: Join, clock: Clock
) -> None:
    """Whoever watched the first holder for long must not take the second one's shard for its own (the ABA problem)."""
    watcher, b = join("watcher"), join("b")
    with Claimant(tmp_path, lease_seconds=LEASE_SECONDS, identity=on_node("a")) as a:
        a.claim(["x"])
        assert watcher.claim(["x"]) is None
        clock.now += LEASE_SECONDS - 1
    assert b.claim(["x"]) == "x"
    clock.now += 1
    assert watcher.claim(["x"]) is None
    assert b.holds("x")


def test_a_shard_that_is_published_meanwhile_is_not_made_again(
    tmp_path: Path, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at what is there and the lease are two moments; between them the holder publishes, and ends."""
    b = join("b")
    with Claimant(tmp_path, lease_seconds=LEASE_SECONDS, identity=on_node("a")) as a:
        a.claim(["x"])
    lives = Leases._lives

    def publish_first(self: Leases, worker: str) -> bool:
        publish(tmp_path, "x")
        return lives(self, worker)

    monkeypatch.setattr(Leases, "_lives", publish_first)
    assert b.claim(["x"]) is None


def test_of_many_that_see_a_dead_holder_one_wins(tmp_path: Path) -> None:
    names = [f"x-{number}" for number in range(20)]
    for name in names:
        assert silent(tmp_path, "dead", dead_process()).take([name]) == name
    workers = [silent(tmp_path, f"w{number}", ProcessIdentity.own()) for number in range(8)]
    start = threading.Barrier(len(workers))
    won: list[list[str]] = [[] for _ in workers]

    def take_all(number: int) -> None:
        start.wait()
        while (shard := workers[number].take(names)) is not None:
            won[number].append(shard)

    threads = [threading.Thread(target=take_all, args=(number,)) for number in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shard for shards in won for shard in shards) == sorted(names)
    for number, shards in enumerate(won):
        assert all(workers[number].holds(shard) for shard in shards)
    assert leases(tmp_path) == {f"{name}.{n}" for name in names for n in (0, 1)}


ACTIONS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["claim", "die", "publish", "wait"])), max_size=25)


@settings(deadline=None, max_examples=25)
@given(ACTIONS)
def test_whatever_happens_a_shard_has_at_most_one_holder(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[int, str]]
) -> None:
    """Four workers that claim, die without a word and come back, publish, or let time pass, against a plain model."""
    partial = tmp_path_factory.mktemp("partial")
    clock, shards = Clock(), ["x", "y", "z"]
    lives = [0] * 4
    held: dict[str, str] = {}
    workers: dict[int, Leases] = {}

    def start(number: int) -> None:
        name = f"{number}-{lives[number]}"
        silent(partial, name, on_node(str(number)))
        workers[number] = Leases(partial, name, lease_seconds=LEASE_SECONDS, clock=clock)

    def beat() -> None:
        for number in range(4):
            path = workers_directory(partial) / f"{number}-{lives[number]}.json"
            record = WorkerRecord(identity=on_node(str(number)), lease_seconds=1, beat=int(clock.now))
            write_json(path, record.as_json())

    for number in range(4):
        start(number)
    for number, action in actions:
        living = {f"{n}-{lives[n]}" for n in range(4)}
        if action == "claim":
            took = workers[number].take(shards)
            if took is not None:
                assert not shard_path(partial, took).exists()
                assert held.get(took) not in living, "it was taken from the living"
                held[took] = f"{number}-{lives[number]}"
        elif action == "die":
            lives[number] += 1
            start(number)
        elif action == "publish":
            for shard, holder in held.items():
                if holder == f"{number}-{lives[number]}" and workers[number].holds(shard):
                    publish(partial, shard)
        else:
            clock.now += LEASE_SECONDS / 2
            beat()
    for shard, holder in held.items():
        for number, leases_ in workers.items():
            assert leases_.holds(shard) == (holder == f"{number}-{lives[number]}")
