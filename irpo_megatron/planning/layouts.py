"""The layouts that a model and a number of devices allow, best first, and those that do not fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from irpo_megatron.artifacts import Json
from irpo_megatron.config import Config, ParallelConfig
from irpo_megatron.config_rules import check_sections
from irpo_megatron.errors import UserError
from irpo_megatron.layout_rules import check_fp8_shape, check_layout
from irpo_megatron.planning.batches import Batches, Lengths, rank_batches
from irpo_megatron.planning.hardware import Device
from irpo_megatron.planning.memory import Memory, training_memory
from irpo_megatron.planning.shape import Shape
from irpo_megatron.planning.timing import StepTime, step_time

Recompute = Literal["none", "selective", "full"]

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
_MICRO_BATCH_TOKENS = (1024, 2048, 4096, 8192, 16384)
_CONTEXT = (1, 2, 4, 8)
_VIRTUAL = (1, 2, 4, 5, 8)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a layout is for.

    Attributes:
        model: A Hugging Face config.json, its defaults filled in.
    """

    model: Json
    shape: Shape
    lengths: Lengths
    device: Device

    @property
    def on_cpu(self) -> bool:
        return self.device.name == "cpu"

    def shares_prompts(self, config: Config) -> bool:
        """Whether a prompt is computed once a pair: Transformer Engine's attention, on a GPU in bf16, cannot."""
        transformer_engine = not self.on_cpu and config.precision.dtype == "bf16"
        return not transformer_engine if config.training.shared_prompt is None else config.training.shared_prompt


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout with what it takes.

    Attributes:
        config: The configuration with its keys set.
        memory: Of the pipeline stage that needs most, which is `stage`.
    """

    config: Config
    batches: Batches
    memory: Memory
    stage: int
    step: StepTime
    room: float
    """Bytes that tensors may take on a device."""

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.room

    @property
    def keys(self) -> dict[str, int | bool | str]:
        """Of the configuration, that say which layout this is."""
        parallel, training = self.config.parallel, self.config.training
        keys: dict[str, int | bool | str] = {f"parallel.{key}": value for key, value in parallel.model_dump().items()}
        keys["training.recompute"] = training.recompute
        if training.micro_batch_size is None:
            keys["training.micro_batch_tokens"] = training.micro_batch_tokens
        return keys


def evaluate(problem: Problem, config: Config) -> Layout:
    """What the layout of a configuration takes."""
    batches = rank_batches(config, problem.lengths, shared=problem.shares_prompts(config))
    last = config.parallel.pipeline - 1
    memories = {
        stage: training_memory(problem.shape, config, batches, stage=stage, on_cpu=problem.on_cpu)
        for stage in (0, last // 2, last)  # embedding, neither, output matrix
    }
    stage = max(memories, key=lambda stage: memories[stage].total)
    return Layout(
        config=config,
        batches=batches,
        memory=memories[stage],
        stage=stage,
        step=step_time(problem.shape, config, batches, problem.device, on_cpu=problem.on_cpu),
        room=problem.device.memory_bytes * problem.device.usable_memory,
    )


def check(problem: Problem, config: Config) -> None:
    """The project's own rules between the sections, and between layout and model.

    Raises:
        UserError: the first one that is broken.
    """
    check_sections(config)
    check_layout(config, problem.model)
    check_fp8_shape(config, problem.model)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Every allowed layout of so many devices: those that fit, fastest first; the others, nearest first."""

    fitting: list[Layout]
    too_large: list[Layout]


def search(problem: Problem, config: Config, devices: int) -> Found:
    """All layouts of `devices` processes that the rules allow.

    Raises:
        UserError: there is none.
    """
    layouts = [evaluate(problem, candidate) for candidate in _candidates(problem, config, devices)]
    if not layouts:
        raise UserError(
            f"--gpus {devices}, training.global_batch_size = {config.training.global_batch_size}, a model of "
            f"{problem.shape.layers} layers and {problem.shape.kv_heads} key-value heads",
            "TP x CP x PP x DP = devices; TP divides heads, key-value heads and feed-forward size, PP layers, DP pairs",
            "choose another number of devices, such as a power of two",
        )
    fitting = sorted((layout for layout in layouts if layout.fits), key=_rank)
    return Found(
        fitting=fitting,
        too_large=sorted((layout for layout in layouts if not layout.fits), key=lambda layout: layout.memory.total),
    )


def _rank(layout: Layout) -> tuple[float, float]:
    """Time first, then memory."""
    return layout.step.total, layout.memory.total


def refused(problem: Problem, config: Config, devices: int) -> list[str]:
    """The sizes that the rules forbid whatever the others are, with the rule."""
    lines: dict[tuple[str, str], list[str]] = {}
    for axis in ("tensor", "pipeline", "data"):
        for size in _divisors(devices):
            try:
                check(problem, config.model_copy(update={"parallel": ParallelConfig(**{axis: size})}))
            except UserError as error:
                lines.setdefault((axis, error.rule), []).append(str(size))
    return [f"parallel.{axis} = {', '.join(sizes)}: {rule}" for (axis, rule), sizes in lines.items()]


def _candidates(problem: Problem, config: Config, devices: int) -> Iterator[Config]:
    """Configurations that the rules allow."""
    for tensor, context, pipeline in itertools.product(_divisors(devices), _CONTEXT, _divisors(devices)):
        if devices % (tensor * context * pipeline) != 0:
            continue
        data = devices // (tensor * context * pipeline)
        for virtual in _VIRTUAL:
            parallel = ParallelConfig(
                tensor=tensor,
                sequence=tensor > 1,
                context=context,
                pipeline=pipeline,
                virtual_pipeline=virtual,
                data=data,
            )
            if _is_allowed(problem, config.model_copy(update={"parallel": parallel})):
                yield from _batchings(config.model_copy(update={"parallel": parallel}))


def _is_allowed(problem: Problem, config: Config) -> bool:
    try:
        check(problem, config)
    except UserError:
        return False
    return True


def _batchings(config: Config) -> Iterator[Config]:
    """Sizes of micro-batches and kinds of recomputation."""
    padded = config.training.micro_batch_size is not None
    for tokens in [config.training.micro_batch_tokens] if padded else _MICRO_BATCH_TOKENS:
        training = config.training.model_copy(update={"micro_batch_tokens": tokens})
        for recompute in RECOMPUTE:
            yield with_recompute(config.model_copy(update={"training": training}), recompute)


def with_recompute(config: Config, recompute: Recompute) -> Config:
    """The same with another kind of recomputation."""
    training = config.training.model_copy(update={"recompute": recompute})
    return config.model_copy(update={"training": training})


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
