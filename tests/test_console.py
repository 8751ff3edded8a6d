"""A bar with a rate on a terminal, a line a finished stage elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from irpo_megatron.artifacts import Progress
from irpo_megatron.console import Console


def console_on(file: StringIO, **options: object) -> Console:
    """A console that writes to `file` as it writes to standard error."""
    console = Console()
    settings = {"highlight": False, "markup": False, "file": file, "_environ": {}} | options
    console.out = RichConsole(**settings)  # type: ignore[arg-type]
    return console


def plain(text: str) -> str:
    """Without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


class Stage:
    """A stage whose progress is set by hand."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.looks = 0

    def watch(self) -> Progress | None:
        self.looks += 1
        return self.progress


@contextmanager
def running(console: Console, stage: Stage) -> Iterator[None]:
    with console.stage(2, "train", stage.watch):
        yield


def test_standard_output_stays_free_for_results(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.finished(1, "generate", 12.34)
    console.say("report: runs/[bold]x/report.html")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "iteration 1  generate        12.3 s\nreport: runs/[bold]x/report.html\n"


def test_one_line_a_stage_where_nobody_watches() -> None:
    file, stage = StringIO(), Stage()
    console = console_on(file)
    stage.progress = Progress(done=1, total=4, unit="steps")
    with running(console, stage):
        console.refresh()
        assert file.getvalue() == ""
    console.finished(2, "train", 75)
    console.refresh()
    assert file.getvalue() == "iteration 2  train           75.0 s\n"
    assert stage.looks == 0


def test_a_bar_with_unit_and_rate_on_a_terminal() -> None:
    file, stage = StringIO(), Stage()
    console = console_on(file, force_terminal=True, width=100)
    now = [100.0]
    with running(console, stage):
        bar = console._bar
        assert bar is not None
        bar.get_time = lambda: now[0]
        console.refresh()  # nothing is known yet
        bar.refresh()
        assert "starting" in plain(file.getvalue())
        for done in (1000, 1500, 2000):
            stage.progress = Progress(done=done, total=4000, unit="steps")
            now[0] += 1
            console.refresh()
        bar.refresh()
    text = plain(file.getvalue())
    assert "iteration 2  train" in text
    assert "2,000 / 4,000 steps · 500.0 /s" in text
    assert "━" in text
    assert stage.looks == 4
    console.finished(2, "train", 3.0)
    assert plain(file.getvalue()).endswith("iteration 2  train            3.0 s\n")


def test_no_rate_before_there_is_one() -> None:
    file, stage = StringIO(), Stage()
    console = console_on(file, force_terminal=True, width=100)
    with running(console, stage):
        stage.progress = Progress(done=0, total=7, unit="problems")
        console.refresh()
        assert console._bar is not None
        console._bar.refresh()
    text = plain(file.getvalue())
    assert "0 / 7 problems" in text
    assert "/s" not in text


def test_the_bar_goes_when_the_stage_fails() -> None:
    file, stage = StringIO(), Stage()
    console = console_on(file, force_terminal=True, width=100)

    def fail() -> None:
        with running(console, stage):
            raise ValueError("a failed stage")

    with pytest.raises(ValueError, match="a failed stage"):
        fail()
    looks = stage.looks
    console.refresh()
    assert stage.looks == looks
    with console.stage(3, "select", stage.watch):  # and the next one has its own
        console.refresh()
    assert "iteration 3  select" in plain(file.getvalue())


@pytest.mark.parametrize("width", [1, 10, 40])
def test_a_narrow_terminal(width: int) -> None:
    file, stage = StringIO(), Stage()
    console = console_on(file, force_terminal=True, width=width)
    with running(console, stage):
        for done in (0, 123456, 1000000):
            stage.progress = Progress(done=done, total=1000000, unit="problems")
            console.refresh()
            assert console._bar is not None
            console._bar.refresh()
    assert max(len(line) for line in re.split(r"[\r\n]", plain(file.getvalue()))) <= width
    console.finished(2, "train", 1.0)
    assert plain(file.getvalue()).endswith("iteration 2  train            1.0 s\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_said_is_neither_broken_nor_interpreted(terminal: bool) -> None:
    file = StringIO()
    path = "/runs/[bold]x[/bold]/" + "long-name/" * 20 + "report.html"
    console_on(file, force_terminal=terminal, width=40).say(f"report: {path}")
    assert plain(file.getvalue()) == f"report: {path}\n"
