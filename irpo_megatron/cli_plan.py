"""The `irpo plan` command: what a run takes, and which layouts fit, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from irpo_megatron.config_file import load_config
from irpo_megatron.planning.hardware import find_device
from irpo_megatron.planning.model import find_model
from irpo_megatron.planning.overlay import write_overlay
from irpo_megatron.planning.plan import Plan, make_plan
from irpo_megatron.planning.tables import duration, layout_table, memory_table, number, stage_table, step_table
from irpo_megatron.planning.workload import Given

# The widest table; a narrower terminal wraps its lines.
_COLUMNS = 130

HELP = """\
Say what a run takes before it runs: memory, FLOPs, time and disk of every stage, and the layouts that fit.

Needs no GPU and no weights. Where the model's folder is not on this machine, the shape of a well-known model is taken \
by the folder's name, or by --model. Lengths and counts are those of the run directory where it has them, else the \
task's expectation: each is printed with where it is from.
"""


def plan_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML configuration; see examples/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Keys to change, as in loss.alpha=0.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Devices; by default those of the configuration.")] = None,
    gpu: Annotated[
        str, typer.Option(help="Kind of device, such as h200-141gb, a100-80gb, b200-180gb or cpu.")
    ] = "h100-80gb",
    model: Annotated[str | None, typer.Option(help="Plan for a well-known shape instead, such as llama2-70b.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="Training problems.")] = None,
    test_problems: Annotated[int | None, typer.Option(min=1, help="Test problems.")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of a prompt.")] = None,
    completion_tokens: Annotated[float | None, typer.Option(min=2, help="Mean tokens of a completion.")] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Pairs an iteration.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device and hour, in any currency.")] = None,
    emit: Annotated[
        Path | None, typer.Option(help="Write the first layout of the table to this new file, for `irpo run`.")
    ] = None,
) -> None:
    """Print the plan; write the overlay where asked for."""
    given = Given(
        problems=problems,
        test_problems=test_problems,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        pairs=pairs,
    )
    device = find_device(gpu)
    configuration = load_config(config, overrides or [])
    plan = make_plan(configuration, find_model(configuration, model), device, gpus, given)
    console = Console(highlight=False, width=max(_COLUMNS, Console().width))
    _print(console, plan, price)
    if emit is not None:
        write_overlay(emit, plan.found.fitting[0], base=config, overrides=overrides or [])
        console.print(f"{emit}: written; irpo run {emit}")


def _print(console: Console, plan: Plan, price: float | None) -> None:
    chosen = "its own layout" if plan.layout is plan.own else "the first layout of the table"
    console.print(f"{plan.model.name} on {plan.devices} x {plan.device.name}, {chosen}\n")
    for line in plan.refused:
        console.print(f"not allowed: {line}")
    for table in (layout_table(plan), memory_table(plan), step_table(plan), stage_table(plan)):
        console.print(table)
        console.print()
    whole = duration(plan.iterations * plan.seconds)
    console.print(
        f"an iteration: {duration(plan.seconds)}; {plan.iterations} of them: {whole}, "
        f"{number(plan.device_hours)} device hours"
        + (f" at {price:g} an hour: {plan.device_hours * price:,.0f}" if price is not None else "")
        + f", {number(plan.disk / 1e9)} GB of disk at the end"
    )
    console.print("\nAssumed:")
    for line in plan.assumptions:
        console.print(f"- {line}")
