"""What the user sees while stages run: a bar with a rate on a terminal, a line a stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from irpo_megatron.artifacts import Progress as StageProgress

Watch = Callable[[], StageProgress | None]


class _RateColumn(ProgressColumn):
    """`12 / 50 steps · 3.1 /s`"""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("starting")
        rate = f" · {task.speed:,.1f} /s" if task.speed else ""
        return Text(f"{task.completed:,.0f} / {task.total:,.0f} {task.fields['unit']}{rate}")


class Console:
    """Progress of the stages, on standard error so that results can be piped."""

    def __init__(self) -> None:
        self.out = RichConsole(stderr=True, highlight=False, markup=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._watch: Watch = lambda: None

    @contextmanager
    def stage(self, iteration: int, name: str, watch: Watch) -> Iterator[None]:
        """Show a stage while it runs; `watch` says how far it is."""
        if not self.out.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            _RateColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.out, transient=True, expand=True) as bar:
            self._bar, self._watch = bar, watch
            self._task = bar.add_task(label(iteration, name), total=None, unit="")
            try:
                yield
            finally:
                self._bar = None

    def refresh(self) -> None:
        """Look again how far the current stage is."""
        progress = self._watch() if self._bar is not None else None
        if self._bar is not None and progress is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total, unit=progress.unit)

    def finished(self, iteration: int, name: str, seconds: float) -> None:
        """Say that a stage is committed."""
        self.out.print(f"{label(iteration, name)}  {seconds:8.1f} s", soft_wrap=True)

    def say(self, text: str) -> None:
        self.out.print(text, soft_wrap=True)


def label(iteration: int, name: str) -> str:
    return f"iteration {iteration}  {name:<10}"
