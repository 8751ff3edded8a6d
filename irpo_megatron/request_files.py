"""The files beside a request, through which a stage's processes and their driver speak to each other.

    iteration-01-train.request.json           driver: what to do
    iteration-01-train.request.listening      stage: it looks for the next one, and saves its work when it is there
    iteration-01-train.request.stop           driver: save and end
    iteration-01-train.request.error.json     stage: why it ended early
    iteration-01-train.events/                stage: what each of its processes did (`irpo_megatron.rank_log`)

Files, since torchrun stands between the two: it passes on neither signals that leave time to save nor exit codes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from irpo_megatron.artifacts import Json, create_json

# A process works on one request in its life; what runs deep inside a stage is spared the path as an argument.
_current: Path | None = None


@contextlib.contextmanager
def working_on(request_path: Path) -> Iterator[None]:
    """Say which request this process works on."""
    global _current
    before, _current = _current, request_path
    try:
        yield
    finally:
        _current = before


def current_request() -> Path | None:
    """The request that this process works on; None in a process that was not started for one, as in a test."""
    return _current


def error_path(request_path: Path) -> Path:
    """Where a stage's process leaves what went wrong."""
    return request_path.with_suffix(".error.json")


def listening_path(request_path: Path) -> Path:
    """What says that the stage looks for a stop file."""
    return request_path.with_suffix(".listening")


def stop_path(request_path: Path) -> Path:
    """What asks the stage to save its work and end."""
    return request_path.with_suffix(".stop")


def events_path(request_path: Path) -> Path:
    """The folder in which each of the stage's processes has a log for programs."""
    return request_path.with_name(f"{request_path.name.removesuffix('.json').removesuffix('.request')}.events")


def leave_error(request_path: Path, what: Json) -> bool:
    """The first rank that fails says why; the others then only see it gone.

    Returns:
        Whether this is the first.
    """
    return create_json(error_path(request_path), what)


def forget_stop(request_path: Path) -> None:
    """Remove what was said about stopping: it must not stop another attempt."""
    listening_path(request_path).unlink(missing_ok=True)
    stop_path(request_path).unlink(missing_ok=True)
