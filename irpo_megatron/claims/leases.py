"""Leases: which worker has a shard, and whether that worker lives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from irpo_megatron.artifacts import create_json, read_json
from irpo_megatron.claims.files import leases_directory, read_record, shard_path, workers_directory


class Leases:
    """The leases of a stage as one worker sees them.

    A lease is the file `SHARD.N` with the name of its holder. It appears whole, by a link that fails where one is, and
    stays as it is. Whoever takes a shard over writes N + 1: of several that try, one succeeds. The highest N counts.
    """

    def __init__(
        self, partial: Path, worker: str, *, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            clock: Seconds on a clock of this process alone: it is never compared with another's.
        """
        self._partial = partial
        self._directory = leases_directory(partial)
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}
        """Worker -> the last heartbeat of it that was seen, and when it was seen first."""

    def take(self, shards: Iterable[str]) -> str | None:
        """The first of these shards that is neither published nor held by a worker that may live; None if none is."""
        latest = self._latest()
        for shard in shards:
            number = latest.get(shard, -1)
            if shard_path(self._partial, shard).exists() or (number >= 0 and self._lives(self._holder(shard, number))):
                continue
            lease = self._directory / f"{shard}.{number + 1}"
            lease.parent.mkdir(parents=True, exist_ok=True)
            # Looked at again: it may have been published, and its worker have ended, since the first look.
            if create_json(lease, {"worker": self._worker}) and not shard_path(self._partial, shard).exists():
                return shard
        return None

    def holds(self, shard: str) -> bool:
        """Whether this worker still has the shard: nobody has taken it over."""
        number = self._latest().get(shard, -1)
        return number >= 0 and self._holder(shard, number) == self._worker

    def _latest(self) -> dict[str, int]:
        """Shard -> the highest number of a lease on it."""
        latest: dict[str, int] = {}
        for path in self._directory.rglob("*"):
            shard, _, number = path.relative_to(self._directory).as_posix().rpartition(".")
            if number.isdecimal():  # others are directories, or being written
                latest[shard] = max(int(number), latest.get(shard, -1))
        return latest

    def _holder(self, shard: str, number: int) -> str:
        return str(read_json(self._directory / f"{shard}.{number}")["worker"])

    def _lives(self, worker: str) -> bool:
        """Whether a worker may live: its heart was seen beating less than `lease_seconds` ago, by this clock."""
        if worker == self._worker:
            return True
        record = read_record(workers_directory(self._partial) / f"{worker}.json")
        if record is None or record.state == "ended" or record.identity.is_gone():
            return False
        now = self._clock()
        beat, since = self._seen.get(worker, (None, now))
        if beat != record.beat:
            since = now
        self._seen[worker] = record.beat, since
        return now - since < self._lease_seconds
