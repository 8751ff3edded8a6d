"""Stop and come back: real drivers that get signals, with real stages, one process or several under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.obedient_driver import LOG, REQUEST, assert_gone, reports, start_driver, wait_for

from irpo_megatron.errors import Interrupted
from irpo_megatron.launch import child
from irpo_megatron.request_files import listening_path, stop_path, working_on
from irpo_megatron.stop import interrupt, on_stop_signal, stop_requests

GO_ON = "the same command goes on from here"


def listening_driver(folder: Path, behaviour: str, *, processes: int = 1) -> subprocess.Popen[str]:
    """A driver whose stage listens on every rank."""
    driver = start_driver(folder, behaviour, processes=processes)
    wait_for(lambda: len(reports(folder, "listening")) == processes, driver=driver)
    return driver


def ranks(folder: Path) -> list[int]:
    return [report["processes"][0] for report in reports(folder)]


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def end_of(driver: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and the last line of the standard error."""
    _, errors = driver.communicate(timeout=600)
    return driver.returncode, errors.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stage_that_listens_saves_and_the_command_says_resume_me(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    driver = listening_driver(tmp_path, "listen and save", processes=processes)
    driver.send_signal(number)
    assert end_of(driver) == (75, f"stage stopped after step 37 of 120; {GO_ON}")
    assert len(reports(tmp_path, "saved")) == processes
    assert_gone(ranks(tmp_path))


def test_a_signal_to_every_process_as_slurm_may_send_it(tmp_path: Path) -> None:
    driver = listening_driver(tmp_path, "listen and save", processes=2)
    torchrun = parent(ranks(tmp_path)[0])
    assert torchrun != driver.pid
    for process in (torchrun, *ranks(tmp_path), driver.pid):
        os.kill(process, signal.SIGUSR1)
    assert end_of(driver) == (75, f"stage stopped after step 37 of 120; {GO_ON}")
    assert len(reports(tmp_path, "saved")) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_the_driver_does_not_get(tmp_path: Path, number: signal.Signals) -> None:
    driver = listening_driver(tmp_path, "listen and save")
    os.kill(*ranks(tmp_path), number)
    assert end_of(driver) == (75, f"stage stopped after step 37 of 120; {GO_ON}")
    said, ended = (tmp_path / LOG).read_text().splitlines()[-2:]
    assert said == "stopped after step 37 of 120"
    assert ended.endswith("ends with status 75")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stage_that_does_not_listen_is_not_waited_for(tmp_path: Path, processes: int) -> None:
    driver = start_driver(tmp_path, "wait", processes=processes)
    wait_for(lambda: len(reports(tmp_path)) == processes, driver=driver)
    driver.send_signal(signal.SIGTERM)
    assert end_of(driver) == (75, f"stage was stopped by SIGTERM; {GO_ON}")
    assert_gone(ranks(tmp_path))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_signal_does_not_wait(tmp_path: Path, processes: int) -> None:
    driver = listening_driver(tmp_path, "listen and do not stop", processes=processes)
    driver.send_signal(signal.SIGUSR1)
    wait_for(stop_path(tmp_path / REQUEST).exists, driver=driver)
    time.sleep(child._ECHO_SECONDS + 0.1)  # sooner it would pass for the echo of the first
    driver.send_signal(signal.SIGTERM)
    assert end_of(driver) == (75, f"stopped at once by a second signal, SIGTERM; {GO_ON}")
    assert_gone(ranks(tmp_path))


def test_control_c_does_not_wait_either(tmp_path: Path) -> None:
    driver = listening_driver(tmp_path, "listen and do not stop")
    driver.send_signal(signal.SIGTERM)
    assert driver.stderr is not None
    assert driver.stderr.readline() == "SIGTERM: waiting for stage to save; a second signal does not wait\n"
    driver.send_signal(signal.SIGINT)
    assert end_of(driver) == (130, f"interrupted; {GO_ON}")
    assert_gone(ranks(tmp_path))


def test_control_c_alone(tmp_path: Path) -> None:
    driver = listening_driver(tmp_path, "listen and do not stop", processes=2)
    driver.send_signal(signal.SIGINT)
    assert end_of(driver) == (130, f"interrupted; {GO_ON}")
    assert_gone(ranks(tmp_path))


def test_a_driver_that_is_killed_takes_a_listening_stage_with_it(tmp_path: Path) -> None:
    driver = listening_driver(tmp_path, "listen and do not stop", processes=2)
    driver.kill()
    driver.communicate()
    assert_gone(ranks(tmp_path))


def test_between_stages_the_command_stops_at_once(tmp_path: Path) -> None:
    driver = start_driver(tmp_path, "between stages")
    assert driver.stdout is not None
    assert driver.stdout.readline() == "between stages\n"
    driver.send_signal(signal.SIGUSR1)
    assert end_of(driver) == (75, f"stopped by SIGUSR1; {GO_ON}")


def test_a_signal_in_the_process_itself() -> None:
    """Without a request, as in a test, there is no file to look for."""
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_stop_file(tmp_path: Path) -> None:
    request = tmp_path / "iteration-01-train.request.json"
    with working_on(request), stop_requests() as stop:
        assert listening_path(request).exists()
        assert not stop.requested
        stop_path(request).touch()
        assert stop.requested
    assert listening_path(request).exists()  # it may still be saving something


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_as_an_exception(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=f"^stopped by {number.name}$"), on_stop_signal(interrupt):
        os.kill(os.getpid(), number)
