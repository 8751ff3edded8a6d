"""A stage's process: the request that it is given, and how it says what went wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.events import events_of

from irpo_megatron import process
from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.errors import Interrupted, StageError, UserError
from irpo_megatron.process import raise_error_of
from irpo_megatron.rank_log import WORKER
from irpo_megatron.request_files import current_request, error_path, events_path
from irpo_megatron.requests import Request, ScoreRequest


class CountRequest(Request):
    """What the stage below reads."""

    count: int


@pytest.fixture(autouse=True)
def no_death_with_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test run must not be tied to its parent."""
    monkeypatch.setattr(process, "die_with_parent", lambda: None)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[CountRequest]:
    """The requests that the module `fake_stage` was run with; 13 is a mistake of the user's, 37 a stop."""
    seen: list[CountRequest] = []

    def run(request: CountRequest) -> None:
        seen.append(request)
        if request.count == 13:
            raise UserError("count = 13", "no count is 13", "count again")
        if request.count == 37:
            raise Interrupted("stopped after step 37 of 120")
        if request.count < 0:
            raise ZeroDivisionError("a defect")

    module = ModuleType("fake_stage")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_stage", module)
    return seen


def write_request(folder: Path, **fields: object) -> Path:
    path = folder / "iteration-01-count.request.json"
    write_json(path, {"output": str(folder / "out"), "iteration": 1, "count": 1} | fields)
    return path


def left_behind(path: Path) -> Exception:
    """What the loop raises for a process that has failed."""
    with pytest.raises((UserError, StageError, Interrupted)) as caught:
        raise_error_of(path, stage="train", reason="exited with status 1", log=Path("train.log"))
    return caught.value


def test_a_process_that_left_nothing_is_still_named(tmp_path: Path) -> None:
    assert str(left_behind(tmp_path / "x.request.json")) == "train exited with status 1\n  log:    train.log"


def test_a_stage_gets_its_request_in_its_own_type(tmp_path: Path, seen: list[CountRequest]) -> None:
    path = write_request(tmp_path, count=5)
    assert process.main("fake_stage", path) == 0
    assert seen == [CountRequest(output=tmp_path / "out", iteration=1, count=5)]
    assert type(seen[0]) is CountRequest
    assert not error_path(path).exists()


def test_a_mistake_of_the_users_is_left_beside_the_request(
    tmp_path: Path, seen: list[CountRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_request(tmp_path, count=13)
    assert process.main("fake_stage", path) == 2
    assert error_path(path).parent == tmp_path
    assert read_json(error_path(path)) == {"seen": "count = 13", "rule": "no count is 13", "remedy": "count again"}
    error = left_behind(path)
    assert isinstance(error, UserError)
    assert (error.seen, error.rule, error.remedy) == ("count = 13", "no count is 13", "count again")
    assert "error: count = 13\n  rule:   no count is 13\n  remedy: count again" in capsys.readouterr().err


def test_errors_of_different_stages_do_not_meet(tmp_path: Path) -> None:
    paths = {error_path(tmp_path / f"iteration-{t:02d}-{name}.request.json") for t in (1, 11) for name in ("a", "b")}
    assert len(paths) == 4


def test_a_mistake_found_while_the_stage_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_an_engine.py").write_text(
        "from irpo_megatron.errors import UserError\nraise UserError('no engine', 'one is needed', 'install it')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write_request(tmp_path)
    assert process.main("needs_an_engine", path) == 2
    assert json.loads(error_path(path).read_text())["remedy"] == "install it"


def test_any_other_error_keeps_its_traceback(
    tmp_path: Path, seen: list[CountRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_request(tmp_path, count=-1)
    assert process.main("fake_stage", path) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n")
    assert printed.endswith("ZeroDivisionError: a defect\n")
    error = left_behind(path)
    assert isinstance(error, StageError)
    assert str(error).startswith("train exited with status 1: ZeroDivisionError: ")
    assert str(error).endswith("\n  log:    train.log")


@pytest.mark.parametrize("fields", [{"count": "many"}, {"count": 1.5}, {"unknown": 1}, {"output": None}])
def test_a_request_of_another_shape_does_not_reach_the_stage(
    tmp_path: Path, seen: list[CountRequest], fields: dict[str, object]
) -> None:
    path = write_request(tmp_path, **fields)
    assert process.main("fake_stage", path) == 1
    assert "ValidationError: 1 validation error for CountRequest" in str(left_behind(path))
    assert seen == []


def test_a_request_that_is_gone(tmp_path: Path, seen: list[CountRequest]) -> None:
    assert process.main("fake_stage", tmp_path / "gone.request.json") == 2
    error = left_behind(tmp_path / "gone.request.json")
    assert isinstance(error, UserError)
    assert "No such file" in error.seen
    assert seen == []


def test_the_type_is_read_from_a_postponed_annotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages use `from __future__ import annotations`: there the annotation is a string."""
    (tmp_path / "postponed_stage.py").write_text(
        "from __future__ import annotations\n"
        "from irpo_megatron.requests import ScoreRequest\n"
        "got = []\n"
        "def run(request: ScoreRequest) -> None:\n"
        "    got.append(request)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    request = ScoreRequest.model_validate(
        {"output": "o", "iteration": 1, "task": "arc", "scoring": {}, "problems": "p", "generations": "g"}
    )
    write_json(tmp_path / "r.json", request.model_dump(mode="json"))
    assert process.main("postponed_stage", tmp_path / "r.json") == 0
    assert sys.modules.pop("postponed_stage").got == [request]


def test_errors_tell_what_was_seen_the_rule_and_the_remedy() -> None:
    error = UserError("x = 1", "x is above 1", "raise x")
    assert str(error) == "x = 1\n  rule:   x is above 1\n  remedy: raise x"
    assert not issubclass(StageError, UserError)
    assert not issubclass(UserError, StageError)


def test_the_first_rank_that_fails_says_why(
    tmp_path: Path, seen: list[CountRequest], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others only see it gone, and must not talk over it."""
    path = write_request(tmp_path, count=13)
    assert process.main("fake_stage", path) == 2
    capsys.readouterr()
    monkeypatch.setenv("RANK", "3")
    assert process.main("fake_stage", write_request(tmp_path, count=-1)) == 1
    assert capsys.readouterr().err == "rank 3: ZeroDivisionError: a defect\n"
    error = left_behind(path)
    assert isinstance(error, UserError)
    assert error.seen == "count = 13"
    assert sorted(tmp_path.glob("*.error*")) == [error_path(path)]


def test_ranks_that_find_the_same_mistake_say_it_once(
    tmp_path: Path, seen: list[CountRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_request(tmp_path, count=13)
    assert [process.main("fake_stage", path) for _ in range(3)] == [2, 2, 2]
    assert capsys.readouterr().err.count("error: count = 13") == 1


def test_a_stage_that_was_asked_to_stop(
    tmp_path: Path, seen: list[CountRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_request(tmp_path, count=37)
    assert process.main("fake_stage", path) == os.EX_TEMPFAIL == 75
    assert capsys.readouterr().err == "stopped after step 37 of 120\n"
    # A rank that then sees the others gone does not make a failure of it.
    assert process.main("fake_stage", write_request(tmp_path, count=-1)) == 1
    assert read_json(error_path(path)) == {"interrupted": "stopped after step 37 of 120"}
    error = left_behind(path)
    assert isinstance(error, Interrupted)
    assert str(error) == "train stopped after step 37 of 120"


def test_each_worker_says_in_its_own_log_why_it_ended(
    tmp_path: Path, seen: list[CountRequest], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_request(tmp_path, count=-1)
    for number in (0, 1):
        monkeypatch.setenv(WORKER, str(number))
        assert process.main("fake_stage", path) == 1
        assert capsys.readouterr().err.startswith("Traceback (most recent call last):\n")


def test_programs_find_the_start_the_end_and_what_went_wrong(
    tmp_path: Path, seen: list[CountRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for count in (5, -1, 13, 37):
        path = write_request(tmp_path, count=count)
        process.main("fake_stage", path)
    events = events_of(events_path(path) / "rank-0001.jsonl")
    early = ["start", "failure", "end", "start", "refusal", "end", "start", "stop", "end"]
    assert [event["event"] for event in events] == ["start", "end", *early], "an attempt is appended to those before"
    assert [event["status"] for event in events if event["event"] == "end"] == [0, 1, 2, 75]
    start, failure = events[0], events[3]
    assert (start["module"], start["rank"], start["processes"]) == ("fake_stage", 1, 2)
    assert (start["python"], "pyarrow" in start["packages"]) == (sys.version.split()[0], True)
    assert failure["exception"].startswith("Traceback (most recent call last):\n")
    assert failure["exception"].endswith("ZeroDivisionError: a defect")
    assert events[6]["remedy"] == "count again"
    assert events[9]["message"] == "stopped after step 37 of 120"


def test_a_stage_can_look_up_its_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Path | None] = []

    def run(request: CountRequest) -> None:
        found.append(current_request())

    module = ModuleType("curious_stage")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "curious_stage", module)
    path = write_request(tmp_path)
    assert process.main("curious_stage", path) == 0
    assert found == [path]
    assert current_request() is None
