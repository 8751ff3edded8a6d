"""What a process of a stage leaves for programs, and what of it people read."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.events import events_of

from irpo_megatron.rank_log import WORKER, Member, note, rank_log
from irpo_megatron.request_files import events_path


@pytest.fixture
def request_path(tmp_path: Path) -> Path:
    return tmp_path / "iteration-01-train.request.json"


def test_a_line_says_who_when_and_what(request_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    before = datetime.now(timezone.utc) - timedelta(milliseconds=1)
    with rank_log(request_path):
        note("step", step=12, seconds=1.5, path=Path("a"))
    file = request_path.parent / "iteration-01-train.events" / "rank-0003.jsonl"
    (line,) = events_of(file)
    moment = datetime.fromisoformat(line.pop("time"))
    assert before <= moment <= datetime.now(timezone.utc)
    assert moment.utcoffset() == timedelta(0)
    assert line == {
        "rank": 3,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "level": "DEBUG",
        "event": "step",
        "step": 12,
        "seconds": 1.5,
        "path": "a",
    }


@pytest.mark.parametrize(
    ("rank", "told"),
    [
        ("0", ["INFO irpo_megatron.x: ours", "WARNING py.warnings: UserWarning: worrying (", "ERROR x: broken"]),
        ("3", ["ERROR rank 3: x: broken"]),
    ],
)
def test_people_read_rank_0_and_the_errors_of_the_others(
    rank: str, told: list[str], request_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with rank_log(request_path):
        logging.getLogger("irpo_megatron.x").info("ours")
        logging.getLogger("x").info("chatter")
        warnings.warn("worrying", stacklevel=1)
        logging.getLogger("x").error("broken")
        note("step", step=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(told)
    assert all(word in line for word, line in zip(told, lines, strict=True))
    events = events_of(events_path(request_path) / f"rank-000{rank}.jsonl")
    assert [event["event"] for event in events] == [*["message"] * 4, "step"]
    assert [event["logger"] for event in events[:4]] == ["irpo_megatron.x", "x", "py.warnings", "x"]


def test_workers_have_logs_of_their_own(
    request_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WORKER, "2")
    with rank_log(request_path) as member:
        logging.getLogger("irpo_megatron.x").info("a shard")
    assert member == Member("worker", 2)
    assert capsys.readouterr().out.endswith(" INFO irpo_megatron.x: a shard\n")
    assert events_of(events_path(request_path) / "worker-0002.jsonl")[0]["worker"] == 2


def test_outside_of_the_block_everything_is_as_before(request_path: Path) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, warnings.showwarning, warnings.formatwarning)
    with rank_log(request_path):
        assert len(root.handlers) == len(before[0]) + 2
    assert (root.handlers, root.level, warnings.showwarning, warnings.formatwarning) == before
    note("step", step=1)
    assert events_of(events_path(request_path) / "rank-0000.jsonl") == []


@given(st.text(st.characters()), st.dictionaries(st.sampled_from(["a", "b"]), st.text(st.characters())))
def test_whatever_is_said_stays_in_its_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, fields: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "request.json"
    with rank_log(path):
        logging.getLogger("irpo_megatron").debug("%s", text)
        note("step", **fields)
    said, noted = events_of(events_path(path) / "rank-0000.jsonl")
    assert said["message"] == text
    assert fields.items() <= noted.items()


def test_sigkill_loses_nothing(request_path: Path) -> None:
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from irpo_megatron.rank_log import note, rank_log\n"
            "with rank_log(Path(sys.argv[1])):\n"
            "    for step in range(1000):\n"
            "        note('step', step=step)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n",
            str(request_path),
        ],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    events = events_of(events_path(request_path) / "rank-0000.jsonl")
    assert [event["step"] for event in events] == list(range(1000))


def test_a_full_disk_is_told_once_and_ends_nothing(request_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = events_path(request_path) / "rank-0000.jsonl"
    file.parent.mkdir()
    file.symlink_to("/dev/full")
    with rank_log(request_path):
        for step in range(3):
            note("step", step=step)
    assert capsys.readouterr().err == f"{file} lacks lines from here on: No space left on device\n"
