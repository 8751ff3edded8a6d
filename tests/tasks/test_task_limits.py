"""The limits by which a process confines itself; in processes of their own: `test_task_helper_process`."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from irpo_megatron.tasks import limits


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("subprocess.Popen", ("touch",)),
        ("os.system", (b"touch escaped",)),
        ("os.posix_spawn", ()),
        ("socket.connect", ()),
        ("os.remove", ("kept",)),
        ("os.chmod", ("kept",)),
        ("open", ("escaped", "w", os.O_WRONLY | os.O_CREAT)),
        ("open", ("escaped", "r+", os.O_RDWR)),
    ],
)
def test_refused(event: str, arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    limits._refuse(event, arguments)
    assert ended == [1]


@pytest.mark.parametrize(
    ("event", "arguments"), [("open", ("data", "r", os.O_RDONLY)), ("import", ("sympy",)), ("compile", ())]
)
def test_needed(event: str, arguments: tuple[object, ...]) -> None:
    limits._refuse(event, arguments)


def test_a_block_within_its_time_goes_on() -> None:
    with limits.cpu_time(60):
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 50
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


def test_memory_is_counted_from_now_and_below_what_is_allowed_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: asked.append(pair))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limits.limit_memory(100)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    limits.limit_memory(100)
    assert asked[0][0] > 100 * 2**20
    assert asked[1] == (1000, 1000)


def test_without_proc_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_SIZES", Path("/nowhere"))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("was limited"))
    limits.limit_memory(100)
    assert limits.peak_mib() == 0
