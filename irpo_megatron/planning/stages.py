"""An iteration stage by stage: memory, FLOPs, seconds, disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from irpo_megatron.planning.batches import pair_batch
from irpo_megatron.planning.flops import forward_flops, training_flops
from irpo_megatron.planning.layouts import Layout, Problem
from irpo_megatron.planning.memory import logits_fit, number_bytes
from irpo_megatron.planning.sampling import Engine
from irpo_megatron.planning.timing import forward_time
from irpo_megatron.planning.workload import Workload

# What reading and writing of checkpoints is taken to reach, of all ranks together.
DISK_BYTES_A_SECOND = 1e9
# A sample's Parquet row: text and token ids, about so many bytes a token as pyarrow compresses them.
_ROW_BYTES_A_TOKEN = 6


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of an iteration; None where nothing can be said.

    Attributes:
        memory: Bytes on a device, at most.
        flops: On all devices.
        seconds: From its start to its end, without the start-up of processes.
        disk: Bytes that it leaves in the run directory.
        note: What sets its size.
    """

    name: str
    memory: float | None = None
    flops: float | None = None
    seconds: float | None = None
    disk: float = 0.0
    note: str = ""


def stages_of(problem: Problem, layout: Layout, work: Workload, engine: Engine) -> Iterator[Stage]:
    """The stages of an iteration, in their order."""
    config, shape, lengths = layout.config, problem.shape, work.lengths

    def sampling(name: str, samples: float, note: str) -> Stage:
        tokens = samples * lengths.completion
        return Stage(
            name=name,
            memory=engine.weights + engine.kv_cache,
            flops=2 * shape.parameters * tokens,
            seconds=engine.seconds(tokens),
            disk=tokens * _ROW_BYTES_A_TOKEN,
            note=f"{samples:,.0f} samples, {tokens / 1e6:,.1f}M tokens{note}",
        )

    if config.method != "sft":
        samples = work.problems * config.generation.samples
        yield sampling(
            "generate", samples, f", {engine.engines} engines x {engine.devices}, {engine.concurrency} at once"
        )
        yield Stage(name="score", note="on CPUs")
    yield Stage(
        name="pairs",
        disk=2 * work.pairs * (lengths.prompt + lengths.completion) * _ROW_BYTES_A_TOKEN,
        note=f"{work.pairs:,} pairs, on CPUs",
    )
    if config.method == "irpo":
        yield _reference(problem, layout, work)
    yield _train(problem, layout, work)
    weights = number_bytes(config) * shape.parameters
    candidates, copy = config.selection.candidates, _quantise(problem, layout, work)
    if candidates > 1:
        judged = sampling("select", candidates * work.held_out, "")
        copying = 0.0 if copy is None else copy.seconds or 0.0
        written = candidates * (2 * weights / DISK_BYTES_A_SECOND + copying)
        yield replace(judged, seconds=(judged.seconds or 0.0) + written, disk=0.0)
    yield Stage(
        name="convert",
        seconds=2 * weights / DISK_BYTES_A_SECOND,
        disk=weights,
        note=f"{weights / 1e9:,.1f} GB of weights",
    )
    if copy is not None:
        yield copy
    yield sampling("evaluate", work.test_problems * (1 + config.evaluation.samples), "")


def _quantise(problem: Problem, layout: Layout, work: Workload) -> Stage | None:
    """A forward pass over the calibration prompts, the layers one after the other on a node's devices."""
    settings, shape, device = layout.config.generation.fp8_weights, problem.shape, problem.device
    if settings is None:
        return None
    prompts = min(settings.calibration_prompts, work.problems)
    flops = 2 * shape.parameters * prompts * (work.lengths.prompt + work.lengths.completion)
    moved = number_bytes(layout.config) * shape.parameters + shape.fp8_bytes
    return Stage(
        name="quantise",
        memory=2 * shape.parameters / min(layout.config.parallel.world_size, device.devices_a_node),
        flops=flops,
        seconds=flops / (device.peak("bf16") * device.product_share) + moved / DISK_BYTES_A_SECOND,
        disk=shape.fp8_bytes,
        note=f"{prompts:,} prompts, {shape.fp8_bytes / 1e9:,.1f} GB of weights",
    )


def _reference(problem: Problem, layout: Layout, work: Workload) -> Stage:
    """Forward passes over every distinct completion; micro-batches are as full as the budget allows."""
    config, parallel = layout.config, layout.config.parallel
    shared = problem.shares_prompts(config)
    row = pair_batch(work.lengths.prompt, work.lengths.completion, shared=shared, completions=2).times(0.5)
    full = row.times(max(1.0, config.training.micro_batch_tokens / row.tokens))
    batches = work.rows * row.tokens / full.tokens / parallel.data
    passes = batches + parallel.pipeline - 1
    return Stage(
        name="reference",
        memory=layout.memory.weights + max(layout.memory.logits, layout.memory.layer),
        flops=work.rows * forward_flops(problem.shape, row).total,
        seconds=passes * forward_time(problem.shape, config, full, problem.device, on_cpu=problem.on_cpu),
        disk=40 * work.rows,
        note=f"{work.rows:,} rows",
    )


def _train(problem: Problem, layout: Layout, work: Workload) -> Stage:
    config = layout.config
    batches, training = layout.batches, layout.config.training
    again = not logits_fit(problem.shape, config, batches.fullest)
    flops = training_flops(problem.shape, batches.total, recompute=training.recompute, logits_again=again)
    width = number_bytes(config)
    # Weights of every candidate, and the resume points with main weights and moments in fp32.
    points = training.keep_resume_points * (width + 12) * problem.shape.parameters
    saved = config.selection.candidates * width * problem.shape.parameters
    kept = config.selection.keep_last
    left = saved if kept is None else min(saved, (kept + 1) * width * problem.shape.parameters)
    trainings = 2 if config.selection.retrain else 1
    return Stage(
        name="train",
        memory=layout.memory.total,
        flops=trainings * work.steps * config.parallel.data * flops.total,
        seconds=trainings * work.steps * layout.step.total + (saved + points) / DISK_BYTES_A_SECOND,
        disk=left,
        note=f"{work.steps:,} steps of {layout.step.total:,.2f} s; {(saved + points) / 1e9:,.0f} GB of disk meanwhile",
    )
