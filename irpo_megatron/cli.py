"""The `irpo` command.

irpo run examples/arithmetic_cpu.yaml loss.alpha=0.5
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console as RichConsole
from rich.table import Table

from irpo_megatron import cli_convert, cli_plan, cli_release
from irpo_megatron.artifacts import read_json
from irpo_megatron.cli_slurm import cancel_run, job_line
from irpo_megatron.config_file import load_config
from irpo_megatron.config_text import describe
from irpo_megatron.console import Console
from irpo_megatron.errors import Interrupted, StageError, UserError
from irpo_megatron.iteration import STAGES, run, run_stage
from irpo_megatron.lasting import end_without_a_search
from irpo_megatron.report.stage import SUMMARY_COLUMNS, summary_rows
from irpo_megatron.status import status_rows
from irpo_megatron.stop import interrupt, on_stop_signal
from irpo_megatron.submission import submit_run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Iterative Reasoning Preference Optimization: sample, score, pair, train with DPO + alpha x NLL, repeat.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML configuration; see examples/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Keys to change, as in loss.alpha=0.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="For example runs/gsm8k.")]
Iteration = Annotated[int, typer.Option("--iteration", min=0, help="Iteration of the method; 0 is the base model.")]
Redo = Annotated[
    bool, typer.Option("--redo", help="Compute stages again that were made from other inputs, instead of refusing.")
]


@app.command("run")
def run_command(config: ConfigPath, overrides: Overrides = None, redo: Redo = False) -> None:
    """Run the loop, or go on from wherever it was left."""
    console = Console()
    with _interruptible():
        path = run(load_config(config, overrides or []), console, redo=redo)
    _print_results(path)
    console.say(f"report: {path / 'report.html'}")


@app.command("config")
def config_command(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved configuration, with a sentence on every key."""
    print(describe(load_config(config, overrides or [])), end="")


@app.command("status")
def status_command(run_dir: RunPath) -> None:
    """Show every stage of every iteration: done, partial (how far) or missing; and the job of a submitted run."""
    table = Table("iteration", "stage", "state", box=None, pad_edge=False)
    for row in status_rows(run_dir):
        table.add_row(*row)
    RichConsole(highlight=False).print(table)
    if (job := job_line(run_dir)) is not None:
        print(job)


@app.command("submit")
def submit_command(
    config: ConfigPath,
    overrides: Overrides = None,
    array: Annotated[
        str | None, typer.Option("--array", metavar="KEY=VALUE,...", help="A run for each value, in one array job.")
    ] = None,
) -> None:
    """Check everything, write the run directory with its job script, and hand it in to Slurm."""
    with _interruptible():
        job = submit_run(config, overrides or [], Console(), array=array)
    print(job)


@app.command("cancel")
def cancel_command(run_dir: RunPath) -> None:
    """End the job of a submitted run: a training stage saves first, and the run can be submitted again."""
    print(cancel_run(run_dir))


def _add_stage_command(stage: str, into: typer.Typer, name: str) -> None:
    summary = (STAGES[stage].__doc__ or "").strip().splitlines()[0]

    @into.command(name, help=f"Run one stage alone. {summary}")
    def stage_command(
        config: ConfigPath, overrides: Overrides = None, iteration: Iteration = 1, redo: Redo = False
    ) -> None:
        with _interruptible():
            run_stage(load_config(config, overrides or []), Console(), stage=stage, iteration=iteration, redo=redo)


for _stage in STAGES:
    if _stage == "convert":  # one of several conversions
        _add_stage_command(_stage, cli_convert.app, "stage")
    else:
        _add_stage_command(_stage, app, _stage)
app.add_typer(cli_convert.app, name="convert")
app.command("release", help=cli_release.HELP)(cli_release.release_command)
app.command("plan", help=cli_plan.HELP)(cli_plan.plan_command)


class _ControlC(Exception):
    """Ctrl-C while the loop was at work; typer would turn a KeyboardInterrupt into a silent exit."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        with on_stop_signal(interrupt):
            yield
    except KeyboardInterrupt:
        raise _ControlC from None


def _print_results(run_dir: Path) -> None:
    table = Table(*SUMMARY_COLUMNS, box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for row in summary_rows(read_json(run_dir / "results.json")):
        table.add_row(*row)
    RichConsole(highlight=False).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exits 2 for a user's mistake, 1 for a failed stage, 75 when asked to stop, without a traceback."""
    end_without_a_search()
    try:
        app(arguments)
    except UserError as error:
        _fail(f"error: {error}", status=2)
    except StageError as error:
        _fail(f"failed: {error}", status=1)
    except Interrupted as stop:
        _fail(f"{stop}; the same command goes on from here", status=os.EX_TEMPFAIL)
    except _ControlC:
        _fail("interrupted; the same command goes on from here", status=130)


def _fail(message: str, *, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
