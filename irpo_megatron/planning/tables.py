"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from irpo_megatron.config import ParallelConfig
from irpo_megatron.planning.layouts import Layout
from irpo_megatron.planning.plan import Plan

_BEST = 5
_NEAREST = 3
_GB = 1e9
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def stage_table(plan: Plan) -> Table:
    """A line a stage of an iteration."""
    table = _table("stage", "GB a device", "PFLOP", "time", "device hours", "disk GB", left=("",))
    for stage in plan.stages:
        hours = None if stage.seconds is None else stage.seconds * plan.devices / 3600
        flops = None if stage.flops is None else stage.flops / 1e15
        memory = None if stage.memory is None else stage.memory / _GB
        table.add_row(
            stage.name,
            number(memory),
            number(flops),
            duration(stage.seconds),
            number(hours),
            number(stage.disk / _GB),
            stage.note,
        )
    return table


def memory_table(plan: Plan) -> Table:
    """What a rank holds while it trains, with each kind of recomputation."""
    table = _table("GB a device", *(layout.config.training.recompute for layout in plan.recomputed))
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "layer", "total"):
        table.add_row(part, *(number(getattr(layout.memory, part) / _GB) for layout in plan.recomputed))
    return table


def step_table(plan: Plan) -> Table:
    """Where an optimizer step's time goes."""
    table = _table("optimizer step", "s", "share")
    step = plan.layout.step
    for name, seconds in {
        "compute": step.compute,
        "communication: tensor": step.tensor,
        "communication: context": step.context,
        "communication: pipeline": step.pipeline,
        "communication: data, not hidden": step.data,
        "pipeline bubble": step.bubble,
        "AdamW": step.optimizer,
        "total": step.total,
        "of it latency: kernels and messages that start": step.latency,
        "of it what a larger global batch would not lengthen": step.fixed,
    }.items():
        table.add_row(name, number(seconds), f"{seconds / step.total:.0%}")
    return table


def layout_table(plan: Plan) -> Table:
    """The best layouts, and the nearest of those that do not fit."""
    table = _table(
        "", "TP", "CP", "PP", "VPP", "DP", "micro-batch", "recompute", "GB a device", "s a step", left=("why not",)
    )
    shown = [("configured", plan.own)]
    shown += [(str(place), layout) for place, layout in enumerate(_distinct(plan.found.fitting, _BEST), start=1)]
    shown += [("-", layout) for layout in _distinct(plan.found.too_large, _NEAREST)]
    for name, layout in shown:
        parallel, training = layout.config.parallel, layout.config.training
        batch = (
            f"{training.micro_batch_size} pairs" if training.micro_batch_size else f"{training.micro_batch_tokens:,}"
        )
        sizes = (parallel.tensor, parallel.context, parallel.pipeline, parallel.virtual_pipeline, parallel.data)
        table.add_row(
            name,
            *map(str, sizes),
            batch,
            training.recompute,
            number(layout.memory.total / _GB),
            f"{layout.step.total:.3g}",
            why_not(layout),
        )
    return table


def why_not(layout: Layout) -> str:
    """What makes a layout too large; nothing where it fits."""
    if layout.fits:
        return ""
    parts = {name: size for name, size in vars(layout.memory).items() if size}
    largest = max(parts, key=lambda name: parts[name])
    over = (layout.memory.total - layout.room) / _GB
    return f"{number(over)} GB too much; most is {largest}, {number(parts[largest] / _GB)} GB"


def _distinct(layouts: list[Layout], count: int) -> Iterator[Layout]:
    """The first of each layout of processes, whatever its micro-batches."""
    seen: list[ParallelConfig] = []
    for layout in layouts:
        if layout.config.parallel not in seen and len(seen) < count:
            seen.append(layout.config.parallel)
            yield layout


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """In the largest unit that it reaches."""
    if seconds is None:
        return "–"
    if seconds == float("inf"):
        return "never"
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), (1.0, "s"))
    return f"{seconds / size:.1f} {unit}"


def _table(first: str, *others: str, left: tuple[str, ...] = ()) -> Table:
    table = Table(first, box=None, pad_edge=False)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    for name in left:
        table.add_column(name)
    return table
