"""A plan: the layout, the stages of an iteration, the whole run."""

from __future__ import annotations

from dataclasses import dataclass

from irpo_megatron.config import Config
from irpo_megatron.errors import UserError
from irpo_megatron.planning.hardware import Device
from irpo_megatron.planning.layouts import (
    RECOMPUTE,
    Found,
    Layout,
    Problem,
    check,
    evaluate,
    refused,
    search,
    with_recompute,
)
from irpo_megatron.planning.model import Model
from irpo_megatron.planning.sampling import Engine, engine_of
from irpo_megatron.planning.stages import Stage, stages_of
from irpo_megatron.planning.workload import Given, Workload, workload_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `irpo plan` prints.

    Attributes:
        layout: What the stages are planned for: the configuration's own layout where no number of devices was asked
            for and it fits, else the best one found.
        own: The configuration's own.
        recomputed: `layout` with each kind of recomputation.
    """

    model: Model
    device: Device
    devices: int
    work: Workload
    layout: Layout
    own: Layout
    recomputed: list[Layout]
    found: Found
    refused: list[str]
    engine: Engine
    stages: list[Stage]
    iterations: int
    assumptions: list[str]

    @property
    def seconds(self) -> float:
        """Of an iteration, where everything is known."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    @property
    def device_hours(self) -> float:
        """Of the whole run."""
        return self.iterations * self.seconds * self.devices / 3600

    @property
    def disk(self) -> float:
        """Bytes of the whole run when it is done."""
        return self.iterations * sum(stage.disk for stage in self.stages)


def make_plan(config: Config, model: Model, device: Device, devices: int | None, given: Given) -> Plan:
    """Plan a run.

    Args:
        devices: None is as many as the configuration's layout takes.

    Raises:
        UserError: the configuration's layout breaks a rule, or no layout takes so many devices, or none fits.
    """
    work = workload_of(config, given)
    problem = Problem(model=model.config, shape=model.shape, lengths=work.lengths, device=device)
    check(problem, config)
    device.peak("fp8" if config.precision.fp8 is not None else config.precision.dtype)
    own = evaluate(problem, config)
    count = devices or config.parallel.world_size
    found = search(problem, config, count)
    if not found.fitting:
        nearest = found.too_large[0]
        raise UserError(
            f"{count} x {device.name}: the smallest layout needs {nearest.memory.total / 1e9:,.1f} GB on each",
            f"tensors get {nearest.room / 1e9:,.1f} GB of a {device.name}",
            "take more devices or larger ones, or precision.dtype=bf16",
        )
    layout = own if devices is None and own.fits else found.fitting[0]
    engine = engine_of(model.shape, config, work.lengths, device, count)
    return Plan(
        model=model,
        device=device,
        devices=count,
        work=work,
        layout=layout,
        own=own,
        recomputed=[evaluate(problem, with_recompute(layout.config, kind)) for kind in RECOMPUTE],
        found=found,
        refused=refused(problem, config, count),
        engine=engine,
        stages=list(stages_of(problem, layout, work, engine)),
        iterations=config.iterations,
        assumptions=[model.source, *work.sources, *_assumptions(problem, layout, engine, count)],
    )


def _assumptions(problem: Problem, layout: Layout, engine: Engine, devices: int) -> list[str]:
    device, config = problem.device, layout.config
    lines = [
        f"{device.name}: {device.product_share:.0%} of the peak in large products, {device.bandwidth_share:.0%} of the "
        f"memory's bandwidth, {device.usable_memory:.0%} of its memory for tensors",
        "attention is counted over all scores, masked ones too; a prompt is computed "
        + ("once for both completions" if problem.shares_prompts(config) else "with each completion"),
        f"longest completion {problem.lengths.longest_completion:,.0f} tokens, longest prompt "
        f"{problem.lengths.longest_prompt:,.0f}",
        "start-up of processes is left out, as are scoring and pairing on CPUs; checkpoints at 1 GB/s",
    ]
    used = engine.engines * engine.devices
    if used < devices:
        lines.append(f"{used} of {devices} devices sample: see generation.workers")
    if not engine.concurrency:
        lines.append(
            f"generation does not fit: {engine.weights / 1e9:,.1f} GB of weights on each of {engine.devices} devices"
        )
    if not problem.on_cpu:
        lines.append("no time on a GPU has been measured")
    return lines
