"""What a process of a stage says: a line for programs in a file of its own, and for people in the log of the stage.

    logs/iteration-01-train.events/rank-0003.jsonl      one JSON object a line, of every attempt
    logs/iteration-01-train.log                         what rank 0 says, warnings of libraries, how any rank failed

    {"time": "2025-01-31T12:00:00.123+00:00", "rank": 3, "host": "n1", "pid": 4711, "level": "DEBUG",
     "event": "step", "step": 12, "seconds": 1.9}

Whatever passes through `logging` or `warnings` is in the first, as an `event` where it is one. Each line is handed to
the system as a whole: a SIGKILL loses none. Variables of the environment are never written there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from irpo_megatron.request_files import events_path

WORKER = "IRPO_WORKER"
"""The variable by which a launcher tells a process that samples its number; ranks know theirs from `RANK`."""

_PACKAGE = "irpo_megatron"
_notes = logging.getLogger(f"{_PACKAGE}.events")


def event(name: str, **fields: object) -> dict[str, object]:
    """What a record is to programs: `logger.info("a line for people", extra=event("step", step=12))`."""
    return {"event": name, "fields": fields}


def note(name: str, **fields: object) -> None:
    """Record an event for programs alone; nothing outside of a stage's process."""
    _notes.debug(name, extra=event(name, **fields))


@dataclass(frozen=True)
class Member:
    """A process among those that work on the same request."""

    role: str
    """`rank` or `worker`"""
    number: int

    @classmethod
    def own(cls) -> Member:
        """Who this process is; one that works alone is rank 0."""
        if WORKER in os.environ:
            return cls("worker", int(os.environ[WORKER]))
        return cls("rank", int(os.environ.get("RANK", "0")))

    @property
    def has_own_log(self) -> bool:
        """Whether nobody else writes to what it prints; ranks share the log of their stage."""
        return self.role == "worker"

    @property
    def prefix(self) -> str:
        """What its lines in a log that ranks share begin with; those of rank 0 are the stage's."""
        return f"rank {self.number}: " if self._is_one_of_many else ""

    def tells_people(self, record: logging.LogRecord) -> bool:
        """Whether a record is for the log of the stage: in that, ranks would all say the same."""
        if self._is_one_of_many:
            return record.levelno >= logging.ERROR
        is_ours = record.name.startswith(f"{_PACKAGE}.")
        return record.levelno >= (logging.INFO if is_ours else logging.WARNING)

    @property
    def _is_one_of_many(self) -> bool:
        return not self.has_own_log and self.number > 0


@contextlib.contextmanager
def rank_log(request_path: Path) -> Iterator[Member]:
    """Write down what this process says in a `with` block."""
    member = Member.own()
    folder = events_path(request_path)
    folder.mkdir(exist_ok=True)
    people = logging.StreamHandler(sys.stdout)
    people.addFilter(member.tells_people)
    people.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {member.prefix}%(name)s: %(message)s"))
    handlers = [people, _EventFile(folder / f"{member.role}-{member.number:04d}.jsonl", member)]
    root, ours = logging.getLogger(), logging.getLogger(_PACKAGE)
    levels, form = (root.level, ours.level), warnings.formatwarning
    root.setLevel(logging.INFO)
    ours.setLevel(logging.DEBUG)
    warnings.formatwarning = _one_line
    logging.captureWarnings(True)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield member
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        logging.captureWarnings(False)
        warnings.formatwarning = form
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


class _EventFile(logging.Handler):
    """Appends a JSON object a record, each in one write."""

    def __init__(self, path: Path, member: Member) -> None:
        super().__init__()
        self.setFormatter(_JsonLine(member))
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write(f"{self.format(record)}\n".encode())
        except OSError as error:
            self._tell(error)
        except Exception:  # a record that cannot be put into words, as any handler of logging treats it
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _tell(self, error: OSError) -> None:
        """A line that cannot be written, as on a full disk, ends no stage: what holds results fails by itself."""
        if not self._has_failed:
            self._has_failed = True
            with contextlib.suppress(OSError):  # the log of the stage lies on the same disk
                print(f"{self._path} lacks lines from here on: {error.strerror}", file=sys.stderr)


class _JsonLine(logging.Formatter):
    def __init__(self, member: Member) -> None:
        super().__init__()
        self._member = member
        self._host = socket.gethostname()

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            self._member.role: self._member.number,
            "host": self._host,
            "pid": record.process,
            "level": record.levelname,
        }
        if hasattr(record, "event"):
            line |= {"event": record.event, **getattr(record, "fields", {})}
        else:
            line |= {"event": "message", "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__}: {message} ({filename}:{lineno})"
