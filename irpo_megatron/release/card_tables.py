"""The tables of a model card."""

from __future__ import annotations

import json

from irpo_megatron.artifacts import Json, flatten
from irpo_megatron.config import Config, is_neutral
from irpo_megatron.release.markdown import Markdown, code, table
from irpo_megatron.report.run_files import Iteration, Run
from irpo_megatron.report.wording import ABSENT, count, interval, percent

_SECTIONS = ("generation", "scoring", "pairs", "loss", "training", "selection")


def accuracy(run: Run, last: Iteration) -> Markdown:
    """Test accuracy up to and with the released iteration, as the evaluations have it."""
    iterations = [iteration for iteration in run.iterations if iteration.number <= last.number]
    votes = [e["majority"]["k"] for i in iterations if (e := i.evaluation) is not None and e.get("majority")]
    columns = ("Iteration", "Greedy, %", "95 %", *((f"maj@{votes[0]}, %", "95 %") if votes else ()))
    rows = [_accuracy_row(iteration, last, voted=bool(votes)) for iteration in iterations]
    return table(columns, rows, numeric=True)


def _accuracy_row(iteration: Iteration, last: Iteration, *, voted: bool) -> tuple[str, ...]:
    name = "0 (base)" if iteration.number == 0 else str(iteration.number)
    name = f"{name} (this model)" if iteration is last else name
    if iteration.evaluation is None:
        return (name, "not evaluated", ABSENT, *((ABSENT, ABSENT) if voted else ()))
    majority = iteration.evaluation.get("majority") or {}
    vote = (percent(majority.get("accuracy")), interval(majority.get("interval"))) if voted else ()
    return (name, percent(iteration.evaluation["accuracy"]), interval(iteration.evaluation["interval"]), *vote)


def pairs(run: Run, last: Iteration) -> Markdown:
    """What each iteration was trained on, and for how many steps."""
    rows = []
    for iteration in run.iterations:
        if 0 < iteration.number <= last.number:
            counts, selection = iteration.pair_counts or {}, iteration.selection or {}
            cells = [counts.get(key) for key in ("problems", "samples", "pairs", "pairs_held_out")]
            rows.append((str(iteration.number), *map(count, cells), count(selection.get("step"))))
    return table(("Iteration", "Problems", "Samples", "Pairs", "of them held out", "Steps"), rows, numeric=True)


def settings(config: Config) -> Markdown:
    """Every key that a result depends on, as the run's configuration has it."""
    tree = config.model_dump(mode="json", include=set(_SECTIONS))
    rows = [(code("seed"), code(str(config.seed)))]
    rows += [(code(key), code(_written(value))) for key, value in flatten(tree).items() if not is_neutral(key)]
    return table(("Key", "Value"), rows, numeric=False)


def numerics(config: Config, model: Json) -> Markdown:
    """Number formats, and the layout of the last start."""
    precision, parallel = config.precision, config.parallel
    training = f"{precision.dtype}, FP8 ({precision.fp8.recipe})" if precision.fp8 else precision.dtype
    virtual = f" (interleaved: {parallel.virtual_pipeline})" if parallel.virtual_pipeline > 1 else ""
    return table(
        ("What", "How"),
        [
            ("Training", training),
            ("Main weights, gradient sums", "fp32"),
            ("Weights in this folder", code(str(model.get("dtype", model.get("torch_dtype"))))),
            ("Tensor parallel", f"{parallel.tensor}{', with sequence parallelism' if parallel.sequence else ''}"),
            ("Context parallel", parallel.context),
            ("Pipeline parallel", f"{parallel.pipeline}{virtual}"),
            ("Data parallel", parallel.data),
        ],
        numeric=False,
    )


def versions(environment: Json) -> Markdown:
    """What computed; nothing of the machine."""
    packages = environment.get("packages")
    named = {"python": environment.get("python"), **(packages if isinstance(packages, dict) else {})}
    rows = [(code(str(name)), code(str(version))) for name, version in named.items() if version is not None]
    return table(("Package", "Version"), rows, numeric=False)


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
