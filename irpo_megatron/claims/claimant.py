"""One worker among others: it claims shards, gives signs of life, and hears when all are to end."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from irpo_megatron.artifacts import create_json, write_json
from irpo_megatron.claims.files import (
    State,
    WorkerRecord,
    leases_directory,
    leave_refusal,
    plan_path,
    raise_refusal,
    workers_directory,
)
from irpo_megatron.claims.leases import Leases
from irpo_megatron.claims.process_identity import ProcessIdentity
from irpo_megatron.errors import UserError

# Often enough for whoever watches, seldom enough for a file system that a hundred workers share.
_LONGEST_PERIOD_SECONDS = 1.0


class Claimant:
    """A worker, within its `with` block; leaving it gives back what it holds."""

    def __init__(
        self,
        partial: Path,
        *,
        lease_seconds: float,
        identity: ProcessIdentity | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            partial: The stage's partial directory.
            lease_seconds: Workers without a heartbeat for so long are taken for dead.
            identity: Of this process, where it is not to be found out.
            clock: See `Leases`.
        """
        self._partial = partial
        self._record = WorkerRecord(identity=identity or ProcessIdentity.own(), lease_seconds=lease_seconds)
        who = self._record.identity
        # A name of its own for each start, so that nobody takes it for one that was here before.
        self.name = f"{who.host}-{who.pid}-{secrets.token_hex(4)}"
        self._path = workers_directory(partial) / f"{self.name}.json"
        self._leases = Leases(partial, self.name, lease_seconds=lease_seconds, clock=clock)
        self._period = min(_LONGEST_PERIOD_SECONDS, lease_seconds / 5)
        self._since = time.monotonic()
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> Claimant:
        for directory in (self._path.parent, leases_directory(self._partial)):
            directory.mkdir(parents=True, exist_ok=True)
        self._beat()  # before any lease names it
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            leave_refusal(self._partial, error)
        self._left.set()
        self._thread.join()
        self.enter("ended")

    def announce(self, samples: Mapping[str, int]) -> None:
        """Say what shards the stage has, and how many samples each; all workers say the same."""
        create_json(plan_path(self._partial), dict(samples))

    def claim(self, shards: Sequence[str]) -> str | None:
        """Take the first of these shards that can be had; None if none can now.

        Raises:
            UserError: another worker has ended the stage by it.
        """
        self._check()
        raise_refusal(self._partial)
        shard = self._leases.take(shards)
        if shard is not None:
            with self._lock:
                self._record.running[shard] = 0
        return shard

    def holds(self, shard: str) -> bool:
        """Whether nobody has taken the shard over, as they do when this process stood still for too long."""
        return self._leases.holds(shard)

    def add(self, shard: str, *, tokens: int) -> None:
        """Count one more sample of a shard.

        Raises:
            UserError: as `claim`, within about a heartbeat.
        """
        self._check()
        with self._lock:
            self._record.running[shard] += 1
            self._record.samples += 1
            self._record.tokens += tokens

    @property
    def tokens_per_second(self) -> float | None:
        """While it samples; None before it has."""
        with self._lock:
            self._count_seconds()
            return self._record.tokens_per_second

    def finish(self, shard: str) -> None:
        """The shard is published, or given up."""
        with self._lock:
            del self._record.running[shard]

    def enter(self, state: State) -> None:
        """Say what this worker does from now on."""
        with self._lock:
            self._count_seconds()
            self._record.state = state
            if state == "ended":
                self._record.running.clear()
        self._beat()

    def _beat_on(self) -> None:
        try:
            while not self._left.wait(self._period):
                self._beat()
                raise_refusal(self._partial)
        except (OSError, UserError) as error:
            self._failure = error  # the main thread raises it

    def _beat(self) -> None:
        with self._lock:
            self._count_seconds()
            self._record.beat += 1
            write_json(self._path, self._record.as_json())

    def _count_seconds(self) -> None:
        now = time.monotonic()
        if self._record.state == "sampling":
            self._record.seconds += now - self._since
        self._since = now

    def _check(self) -> None:
        """Raise what the heartbeat met."""
        if self._failure is not None:
            raise self._failure
