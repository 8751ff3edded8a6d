"""Stages in processes of their own: how they are started, how their failures are told, and that none is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.obedient_driver import REQUEST, assert_gone, obey, python_path, reports

from irpo_megatron.artifacts import write_json
from irpo_megatron.errors import Interrupted, StageError, UserError
from irpo_megatron.launch import local, supervision
from irpo_megatron.launch.child import stop_children
from irpo_megatron.launch.local import run_stage_process
from irpo_megatron.request_files import error_path, listening_path, stop_path


@pytest.fixture(autouse=True)
def importable_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children import `support` too."""
    monkeypatch.setenv("PYTHONPATH", python_path())


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., None]:
    """Run the obedient stage below `tmp_path`."""
    return partial(obey, tmp_path)


def interrupt_when(folder: Path, ranks: int) -> Callable[[], None]:
    """What `watch` does when the user presses Ctrl-C after every rank has begun."""

    def watch() -> None:
        if len(list((folder / "out").glob("rank-*.json"))) == ranks:
            raise KeyboardInterrupt

    return watch


def test_a_stage_in_one_process(tmp_path: Path, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the configuration decides, not the shell
    start("report", threads=3)
    (report,) = reports(tmp_path)
    assert report.pop("processes") != [os.getpid()]
    assert report == {
        "RANK": None,
        "LOCAL_RANK": None,
        "WORLD_SIZE": None,
        "OMP_NUM_THREADS": "3",
        "TOKENIZERS_PARALLELISM": "false",
        "stdin": "",
    }
    first, printed, last = (tmp_path / "stage.log").read_text().splitlines()
    assert first.endswith(f": support.obedient_stage starts on {socket.gethostname()}, processes: 1")
    assert printed == "rank 0 was here"
    assert last.endswith(": ends with status 0")


def test_a_stage_by_another_interpreter(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho by another: "$@"\nexec "{sys.executable}" -c ""\n')
    python.chmod(0o755)
    request, log = tmp_path / "request.json", tmp_path / "stage.log"
    run_stage_process("a.module", request, processes=1, threads=1, log=log, watch=lambda: None, python=python)
    assert log.read_text() == f"by another: -m irpo_megatron.process a.module {request}\n"


def test_a_mistake_of_the_users_is_passed_on(tmp_path: Path, start: Callable[..., None]) -> None:
    with pytest.raises(UserError) as caught:
        start("blame the user")
    assert (caught.value.seen, caught.value.rule, caught.value.remedy) == (
        "count = 13",
        "no count is 13",
        "count again",
    )
    assert "error: count = 13" in (tmp_path / "stage.log").read_text()


def test_ranks_under_torchrun_and_a_mistake_that_one_of_them_finds(tmp_path: Path, start: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="no count is 13"):
        start("blame the user", processes=2, threads=2)
    first, second = reports(tmp_path)
    assert_gone([*first.pop("processes"), *second.pop("processes")])
    common = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false", "stdin": ""}
    assert first == {"RANK": "0", "LOCAL_RANK": "0", **common}
    assert second == {"RANK": "1", "LOCAL_RANK": "1", **common}


def test_a_failure_names_its_log_which_grows(tmp_path: Path, start: Callable[..., None]) -> None:
    # What an earlier attempt left is not told again.
    write_json(error_path(tmp_path / "request.json"), {"seen": "old", "rule": "old", "remedy": "old"})
    with pytest.raises(StageError) as caught:
        start("fail")
    assert str(caught.value).startswith("stage exited with status 1: ZeroDivisionError: a defect")
    assert str(caught.value).endswith(f"\n  log:    {tmp_path / 'stage.log'}")
    start("report")
    log = (tmp_path / "stage.log").read_text()
    assert log.index("ZeroDivisionError: a defect") < log.rindex("rank 0 was here")


def test_a_signal_death_is_named_and_leaves_no_helper(tmp_path: Path, start: Callable[..., None]) -> None:
    with pytest.raises(StageError) as caught:
        start("die")
    assert str(caught.value) == f"stage was killed by SIGSEGV\n  log:    {tmp_path / 'stage.log'}"
    (report,) = reports(tmp_path)
    assert len(report["processes"]) == 2
    assert_gone(report["processes"])


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "request.json", {})
    with pytest.raises(StageError, match="status 1"):
        run_stage_process(
            "support.no_such_stage",
            tmp_path / "request.json",
            processes=1,
            threads=1,
            log=tmp_path / "stage.log",
            watch=lambda: None,
        )
    assert "ModuleNotFoundError" in (tmp_path / "stage.log").read_text()


def test_an_interrupt_stops_the_stage_and_its_helpers(tmp_path: Path, start: Callable[..., None]) -> None:
    with pytest.raises(KeyboardInterrupt):
        start("wait with helper", watch=interrupt_when(tmp_path, 1))
    (report,) = reports(tmp_path)
    assert len(report["processes"]) == 2  # the helper ignores the polite signal
    assert_gone(report["processes"])


def test_an_interrupt_stops_a_stage_that_does_not_listen(
    tmp_path: Path, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.3)
    with pytest.raises(KeyboardInterrupt):
        start("wait deaf", watch=interrupt_when(tmp_path, 1))
    (report,) = reports(tmp_path)
    assert_gone(report["processes"])


def test_an_interrupt_stops_every_rank(tmp_path: Path, start: Callable[..., None]) -> None:
    with pytest.raises(KeyboardInterrupt):
        start("wait", processes=2, watch=interrupt_when(tmp_path, 2))
    ranks = [report["processes"][0] for report in reports(tmp_path)]
    assert len(ranks) == 2
    assert_gone(ranks)


def test_a_stage_that_has_ended_is_stopped_quietly() -> None:
    child = subprocess.Popen(["sh", "-c", "exit 3"], start_new_session=True)
    assert_gone([child.pid])
    assert stop_children([child], grace=10) == [3]


def send_when(folder: Path, name: str, ranks: int, number: signal.Signals) -> Callable[[], None]:
    """What `watch` does when this process gets a signal after every rank has left its file."""

    def watch() -> None:
        if len(reports(folder, name)) == ranks and not stop_path(folder / REQUEST).exists():
            os.kill(os.getpid(), number)

    return watch


def test_a_stage_that_listens_saves_first(tmp_path: Path, start: Callable[..., None]) -> None:
    with pytest.raises(Interrupted, match=r"^stage stopped after step 37 of 120$"):
        start("listen and save", watch=send_when(tmp_path, "listening", 1, signal.SIGUSR1))
    assert len(reports(tmp_path, "saved")) == 1


def test_a_stage_that_was_stopped_goes_on(tmp_path: Path, start: Callable[..., None]) -> None:
    """What the first attempt was told is not told to the second, whether its driver could tidy up or was killed."""
    with pytest.raises(Interrupted):
        start("listen and save", watch=send_when(tmp_path, "listening", 1, signal.SIGTERM))
    assert not stop_path(tmp_path / REQUEST).exists()
    assert not listening_path(tmp_path / REQUEST).exists()
    stop_path(tmp_path / REQUEST).touch()
    start("listen")
    assert reports(tmp_path, "listening") == [{"requested": False}]


def test_a_stage_that_no_longer_listens_is_not_waited_for(tmp_path: Path, start: Callable[..., None]) -> None:
    listening_path(tmp_path / REQUEST).touch()
    with pytest.raises(Interrupted, match=r"^stage was stopped by SIGTERM$"):
        start("wait", watch=send_when(tmp_path, "rank", 1, signal.SIGTERM))


def test_a_stage_that_ends_well_all_the_same(tmp_path: Path, start: Callable[..., None]) -> None:
    """The driver has to stop before the next one."""
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM after stage$"):
        start("listen and end", watch=send_when(tmp_path, "listening", 1, signal.SIGTERM))


def test_a_stage_that_fails_to_save(tmp_path: Path, start: Callable[..., None]) -> None:
    with pytest.raises(StageError, match="ZeroDivisionError: a defect in saving"):
        start("listen and fail", watch=send_when(tmp_path, "listening", 1, signal.SIGTERM))


def test_patience_has_an_end(tmp_path: Path, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_PATIENCE_SECONDS", 0.3)
    with pytest.raises(Interrupted, match=r"^stage was stopped by SIGTERM before it had saved$"):
        start("listen and do not stop", watch=send_when(tmp_path, "listening", 1, signal.SIGTERM))
    assert_gone([process for report in reports(tmp_path) for process in report["processes"]])


def test_the_echo_of_a_signal_is_no_second_one(tmp_path: Path, start: Callable[..., None]) -> None:
    """timeout(1) sends its signal to the process, and again to the process's group."""
    once = send_when(tmp_path, "listening", 1, signal.SIGTERM)

    def watch() -> None:
        once()
        once()

    with pytest.raises(Interrupted, match="stopped after step 37 of 120"):
        start("listen and save", watch=watch)


def test_handlers_are_put_back(start: Callable[..., None]) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    start("report")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


def test_a_stage_started_by_another_thread(tmp_path: Path, start: Callable[..., None]) -> None:
    """Python handles signals in the main thread only."""
    thread = threading.Thread(target=start, args=("report",))
    thread.start()
    thread.join()
    assert len(reports(tmp_path)) == 1
