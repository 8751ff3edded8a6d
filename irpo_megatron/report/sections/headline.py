"""The first screen: what was run, what came of it, what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from irpo_megatron.artifacts import Json, partial_directory
from irpo_megatron.claims import how_far
from irpo_megatron.config import Config
from irpo_megatron.report.run_files import Iteration, Run
from irpo_megatron.report.wording import count, duration, interval, listing, percent, points

_TASKS = {
    "gsm8k": "GSM8K",
    "math": "MATH",
    "arc": "ARC-Challenge",
    "arithmetic": "chain arithmetic (the demo task)",
}

DEMO_NOTE = (
    "Chain arithmetic is a task made for demonstration, with a small model that was first taught to calculate and then "
    "to guess. It illustrates the mechanism of the method and is no evidence for it."
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model's accuracy on the test problems."""

    label: str
    percent: str
    interval: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What the top of the page says."""

    name: str
    task: str
    method: str
    measured: tuple[Measured, ...]
    """The base model and the last iteration, as far as they have been evaluated."""
    gained: str | None
    """Percentage points between the two."""
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    """What the run directory does not hold, a sentence an iteration."""


def headline(run: Run) -> Headline:
    """The first screen of a run."""
    config = run.config
    ends = [run.evaluated[0], run.evaluated[-1]] if len(run.evaluated) > 1 else run.evaluated
    shares = [evaluation["accuracy"] for _, evaluation in ends]
    return Headline(
        name=config.name,
        task=task_name(config),
        method=method_name(config),
        measured=tuple(_measured(*end) for end in ends),
        gained=points(shares[1] - shares[0]) if len(shares) == 2 else None,
        facts=tuple(_facts(run).items()),
        notes=(DEMO_NOTE,) if config.task == "arithmetic" else (),
        missing=tuple(_missing(run)),
    )


def task_name(config: Config) -> str:
    """The task as people call it."""
    return _TASKS[config.task]


def method_name(config: Config) -> str:
    """The method as the paper calls it, with the coefficients that make it so."""
    alpha, beta = config.loss.alpha, config.loss.beta
    if config.method == "star":
        return "STaR: NLL on the chosen completions"
    if config.method == "sft":
        return "SFT on the gold solutions"
    if alpha == 0:
        return f"plain DPO: IRPO without its NLL term (\u03b1 = 0, \u03b2 = {beta:g})"
    return f"IRPO: DPO and NLL on the chosen completions (\u03b1 = {alpha:g}, \u03b2 = {beta:g})"


def model_name(config: Config) -> str:
    """Where M_0 comes from."""
    model = config.model
    if model.path is not None:
        return model.path.name or str(model.path)
    if model.recipe is not None:
        return f"the last checkpoint of {model.recipe.name}"
    if model.random is not None:
        return f"random weights, {model.random.layers} layers of width {model.random.hidden_size}"
    return "not stated"


def _measured(iteration: Iteration, evaluation: Json) -> Measured:
    return Measured(
        label="base model" if iteration.number == 0 else f"iteration {iteration.number}",
        percent=percent(evaluation["accuracy"]),
        interval=interval(evaluation["interval"]),
    )


def _facts(run: Run) -> dict[str, str]:
    seconds = [*run.seconds.values(), *(s for iteration in run.iterations for s in iteration.seconds.values())]
    done = sum(iteration.number > 0 for iteration, _ in run.evaluated)
    return {
        "Base model": model_name(run.config),
        "Test problems": count(run.evaluated[-1][1]["problems"]) if run.evaluated else "not evaluated yet",
        "Iterations": f"{done} of {run.config.iterations}",
        "Wall time, all stages": duration(sum(seconds)) if seconds else "nothing has finished yet",
    }


def _missing(run: Run) -> list[str]:
    found = {iteration.number: iteration for iteration in run.iterations}
    last = max([run.config.iterations, *found])
    sentences = [_missing_of(number, found.get(number), run.config) for number in range(last + 1)]
    return [sentence for sentence in sentences if sentence is not None]


def _missing_of(number: int, iteration: Iteration | None, config: Config) -> str | None:
    """What is not there of one iteration; None where all is."""
    name = "Base model" if number == 0 else f"Iteration {number}"
    if iteration is None:
        return f"{name}: all of it; it has not begun."
    absent = [stage for stage in _expected(number, config) if stage not in iteration.seconds]
    if not absent:
        return None
    sentence = f"{name}: {listing(absent)}"
    for stage in absent:
        partial = partial_directory(iteration.directory / stage)
        if partial.is_dir():
            progress = how_far(partial)
            far = f" ({progress.done:,} of {progress.total:,} {progress.unit})" if progress else ""
            sentence += f"; {stage} is under way or was interrupted{far}"
    return f"{sentence}."


def _expected(number: int, config: Config) -> tuple[str, ...]:
    """The stages whose output the report shows."""
    if number == 0:
        return ("evaluation",)
    sampling = () if config.method == "sft" else ("generations", "scores")
    reference = ("reference",) if config.method == "irpo" else ()
    selection = ("selection",) if config.selection.candidates > 1 else ()
    return (*sampling, "pairs", *reference, "training", *selection, "checkpoint-hf", "evaluation")
