"""A process that may die: time, memory, files, processes; and the next question is answered."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.tasks import helper_process
from irpo_megatron.tasks.helper_loop import serve
from irpo_megatron.tasks.helper_process import HelperProcess
from irpo_megatron.tasks.limits import Limits, peak_mib

LIMITS = Limits(cpu_seconds=0.5, memory_mib=100)


@pytest.fixture
def helper() -> Iterator[HelperProcess]:
    helper = HelperProcess("support.obedient_helper", limits=LIMITS)
    yield helper
    helper.close()


@pytest.mark.parametrize("end", ["die", "raise", "spin", "eat"])
def test_a_death_is_no_reply_and_the_next_question_is_answered(helper: HelperProcess, end: str) -> None:
    before = helper.ask({"do": "answer"})
    assert helper.ask({"do": end, "mib": 200}) is None
    after = helper.ask({"do": "answer"})
    assert before is not None
    assert after is not None
    assert before["pid"] != after["pid"]
    assert before["hash"] == after["hash"]  # sets have one order in all of them


def test_what_is_within_the_limits_is_answered(helper: HelperProcess) -> None:
    assert helper.ask({"do": "eat", "mib": 50}) == {"eaten": 50 * 2**20}


def test_time_is_counted_for_each_question(helper: HelperProcess) -> None:
    """Forty questions take more than the limit together, and none of them does."""
    replies = [helper.ask({"do": "eat", "mib": 80}) for _ in range(40)]
    assert replies == [{"eaten": 80 * 2**20}] * 40


def test_one_that_stands_still_is_given_up(helper: HelperProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    helper.ask({"do": "answer"})
    helper.close()
    monkeypatch.setattr(helper_process, "DEADLINE_SECONDS", 0.5)
    began = time.perf_counter()
    assert helper.ask({"do": "sleep"}) is None
    assert time.perf_counter() - began < 30


def test_one_killed_between_two_questions_is_replaced(helper: HelperProcess) -> None:
    helper.ask({"do": "answer"})
    assert helper._process is not None
    helper._process.kill()
    helper._process.wait()
    assert helper.ask({"do": "answer"}) is not None


def test_a_print_is_no_reply(helper: HelperProcess) -> None:
    assert "pid" in (helper.ask({"do": "print"}) or {})


@pytest.mark.parametrize("deed", ["write", "delete", "start", "fork"])
def test_an_escape_ends_the_process(deed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").touch()
    helper = HelperProcess("support.obedient_helper", "inside", limits=LIMITS)
    assert helper.ask({"do": "answer"}) is not None
    assert helper.ask({"do": deed}) is None
    helper.close()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_one_that_does_not_start_is_explained() -> None:
    helper = HelperProcess("support.obedient_helper", "unwilling", limits=LIMITS)
    with pytest.raises(UserError, match=r"support\.obedient_helper did not start .*") as caught:
        helper.ask({"do": "answer"})
    assert "python -m support.obedient_helper '{" in caught.value.remedy


def test_the_loop_in_this_process() -> None:
    replies = io.StringIO()
    serve(lambda question: {"twice": 2 * question["n"]}, LIMITS, io.StringIO('{"n": 1}\n{"n": 4}\n'), replies)
    assert replies.getvalue().splitlines() == ["ready", json.dumps({"twice": 2}), json.dumps({"twice": 8})]


def test_the_peak_is_remembered() -> None:
    block = bytearray(2**28)
    high = peak_mib()
    del block
    assert peak_mib() == high >= 256
