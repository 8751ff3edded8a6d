"""Stages in processes of their own: how they are started, how their failures are told, and that none is left behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.obedient_stage import ObedientRequest

from irpo_megatron.artifacts import Json, read_json, write_json
from irpo_megatron.errors import StageError, UserError
from irpo_megatron.launch import local
from irpo_megatron.launch.local import run_stage_process
from irpo_megatron.process import error_path

MODULE = "support.obedient_stage"


@pytest.fixture(autouse=True)
def importable_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children import `support` too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., None]:
    """Run the obedient stage below `tmp_path`."""
    (tmp_path / "out").mkdir()

    def start(
        behaviour: str, *, processes: int = 1, threads: int = 1, watch: Callable[[], None] = lambda: None
    ) -> None:
        request = ObedientRequest.model_validate({"output": tmp_path / "out", "iteration": 1, "behaviour": behaviour})
        write_json(tmp_path / "request.json", request.model_dump(mode="json"))
        run_stage_process(
            MODULE,
            tmp_path / "request.json",
            processes=processes,
            threads=threads,
            log=tmp_path / "stage.log",
            watch=watch,
        )

    return start


def reports(folder: Path) -> list[Json]:
    return [read_json(path) for path in sorted((folder / "out").glob("rank-*.json"))]


def is_alive(process: int) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def assert_gone(processes: list[int]) -> None:
    # SIGKILL takes effect a moment after it is sent.
    deadline = time.monotonic() + 30
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [process for process in processes if is_alive(process)]


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
    assert (tmp_path / "stage.log").read_text() == "rank 0 was here\n"


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
    monkeypatch.setattr(local, "_GRACE_SECONDS", 0.3)
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
    assert local._stop(child) == 3
