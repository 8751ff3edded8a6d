"""The files of `claims/`: where they stand, and what they hold."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from irpo_megatron.artifacts import CLAIMS, Json, create_json, read_json
from irpo_megatron.claims.process_identity import ProcessIdentity
from irpo_megatron.errors import UserError

State = Literal["starting", "loading", "sampling", "waiting", "ended"]


@dataclass(kw_only=True)
class WorkerRecord:
    """What a worker says of itself, anew at each heartbeat."""

    identity: ProcessIdentity
    lease_seconds: float
    state: State = "starting"
    beat: int = 0
    """Grows with each heartbeat."""
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Spent sampling: neither loading nor waiting."""
    running: dict[str, int] = field(default_factory=dict)
    """The shards that it works on, and how many samples of each it has."""

    @property
    def tokens_per_second(self) -> float | None:
        """While it samples; None before it has."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    def as_json(self) -> Json:
        return dataclasses.asdict(self)


def read_record(path: Path) -> WorkerRecord | None:
    """A worker's record; None where it has none."""
    if not path.is_file():
        return None
    values = read_json(path)
    return WorkerRecord(**{**values, "identity": ProcessIdentity(**values["identity"])})


def shard_path(partial: Path, shard: str) -> Path:
    """Where a shard of a stage is published: its name is the path below the partial directory, without the suffix."""
    return partial / f"{shard}.parquet"


def plan_path(partial: Path) -> Path:
    return partial / CLAIMS / "shards.json"


def workers_directory(partial: Path) -> Path:
    return partial / CLAIMS / "workers"


def leases_directory(partial: Path) -> Path:
    return partial / CLAIMS / "leases"


def counts_path(partial: Path, shard: str) -> Path:
    return partial / CLAIMS / "counts" / f"{shard}.json"


def forget_attempt(partial: Path) -> None:
    """Remove what the workers of earlier attempts said, before new ones start: they have ended, or do not count.

    What is known of committed shards stays.
    """
    for directory in (leases_directory(partial), workers_directory(partial)):
        shutil.rmtree(directory, ignore_errors=True)  # one that has not ended yet may write there; it does no harm
    for path in (plan_path(partial), _refusal_path(partial)):
        path.unlink(missing_ok=True)


def leave_refusal(partial: Path, error: UserError) -> None:
    """End the stage for every worker by this error; the first one counts."""
    create_json(_refusal_path(partial), {"seen": error.seen, "rule": error.rule, "remedy": error.remedy})


def raise_refusal(partial: Path) -> None:
    """
    Raises:
        UserError: the one by which a worker has ended the stage.
    """
    if (path := _refusal_path(partial)).is_file():
        raise UserError(**read_json(path))


def _refusal_path(partial: Path) -> Path:
    return partial / CLAIMS / "refused.json"
