"""The watchdog: a process that no longer moves says where it stands, and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.events import events_of
from support.obedient_driver import LOG, REQUEST, assert_gone, reports, start_driver

from irpo_megatron.request_files import error_path, events_path
from irpo_megatron.watchdog import Watchdog

STALLED = "nothing moved for 2 s (last: step 12)"


def failed(folder: Path, behaviour: str, *, processes: int) -> tuple[str, str]:
    """Run a stage that stalls: what its driver says, and the log."""
    driver = start_driver(folder, behaviour, processes=processes)
    _, errors = driver.communicate(timeout=600)
    assert driver.returncode == 1
    assert_gone([process for report in reports(folder) for process in report["processes"]])
    return errors, (folder / LOG).read_text()


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


def test_a_stalled_stage_leaves_its_stacks_and_ends(tmp_path: Path) -> None:
    errors, log = failed(tmp_path, "stall", processes=1)
    assert errors == (
        f"failed: stage exited with status 1: rank 0: {STALLED}; the stacks of all ranks are in the log\n"
        f"  log:    {tmp_path / LOG}\n"
    )
    (report,) = reports(tmp_path)
    heading, stacks = log.split(f"rank 0: {STALLED}; the stacks of process {report['processes'][0]}:\n")
    assert heading.endswith("rank 0 was here\n")
    assert "in _stall" in stacks


def test_ranks_that_wait_for_each_other_all_say_where(tmp_path: Path) -> None:
    errors, log = failed(tmp_path, "stall", processes=2)
    assert f"{STALLED}; the stacks of all ranks are in the log\n" in errors
    for rank, where in ((0, "in _stall"), (1, "in barrier")):
        _, _, stacks = log.partition(f"rank {rank}: {STALLED}; the stacks of process ")
        own, _, _ = stacks.partition(f"rank {1 - rank}: ")
        assert where in own
        (stall,) = (
            event
            for event in events_of(events_path(tmp_path / REQUEST) / f"rank-000{rank}.jsonl")
            if event["event"] == "stall"
        )
        assert (stall["last"], where in stall["stacks"]) == ("step 12", True)


def test_a_process_that_keeps_the_interpreters_lock_ends_too(tmp_path: Path) -> None:
    errors, log = failed(tmp_path, "stall with the lock", processes=1)
    assert errors == f"failed: stage exited with status 1\n  log:    {tmp_path / LOG}\n"
    assert "Timeout (0:00:10)!" in log
    assert "in _stall" in log
    assert not error_path(tmp_path / REQUEST).exists()


def test_nothing_happens_while_beats_arrive_and_after_the_block() -> None:
    finished = python(
        "import time\n"
        "from irpo_megatron.watchdog import Watchdog\n"
        "with Watchdog(3, rank=0, grace=1) as dog:\n"
        "    for step in range(40):\n"
        "        time.sleep(0.1)\n"
        "        dog.beat(f'step {step}')\n"
        "time.sleep(5)\n"
        "print('well')\n"
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "well\n", "")


def test_what_moves_again_before_the_end_goes_on() -> None:
    finished = python(
        "import threading, time\n"
        "from irpo_megatron.watchdog import Watchdog\n"
        "told = threading.Event()\n"
        "class Dog(Watchdog):\n"
        "    def _write_stacks(self, sentence):\n"
        "        super()._write_stacks(sentence)\n"
        "        told.set()\n"
        "with Dog(3, rank=3, grace=30) as dog:\n"
        "    told.wait()\n"
        "    for step in range(20):\n"
        "        dog.beat(f'step {step}')\n"
        "        time.sleep(0.1)\n"
        "print('well')\n"
    )
    assert (finished.returncode, finished.stdout) == (0, "well\n")
    assert finished.stderr.count("rank 3: nothing moved for 3 s (last: the start); the stacks of process ") == 1


def test_an_exception_passes() -> None:
    """The watchdog must not keep a process that fails, nor hide why."""
    finished = python(
        "from irpo_megatron.watchdog import Watchdog\nwith Watchdog(600, rank=0):\n    raise ZeroDivisionError\n"
    )
    assert finished.returncode == 1
    assert finished.stderr.endswith("ZeroDivisionError\n")


def test_a_beat_is_cheap() -> None:
    with Watchdog(600, rank=0) as dog:
        for step in range(2000):
            dog.beat(f"step {step}")
