"""Load the problems, draw as many as asked for, and set the held-out ones aside (paper, section 3.1).

    python -m irpo_megatron.process irpo_megatron.tasks.stage REQUEST.json

A problem keeps the id that it was loaded with, `train-000017` for a held-out one too, so that the id tells its place in
the source.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from irpo_megatron.artifacts import write_json
from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem, Split, write_rows
from irpo_megatron.requests import ProblemsRequest
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task

logger = logging.getLogger(__name__)


def run(request: ProblemsRequest) -> None:
    """Write `train.parquet`, `held_out.parquet`, `test.parquet` of `Problem` rows, and their sizes as `counts.json`.

    Raises:
        UserError: a source is missing or malformed, or holding out would leave nothing to train on.
    """
    task, data, seed = load_task(request.task), request.data, request.seed
    loaded = draw(task.load(data.train, split="train"), data.train_limit, seed=seed, split="train")
    test = draw(task.load(data.test, split="test"), data.test_limit, seed=seed, split="test")
    train, held_out = set_aside(loaded, request.selection.held_out, seed=seed)
    splits: dict[Split, list[Problem]] = {"train": train, "held_out": held_out, "test": test}
    for split, problems in splits.items():
        write_rows(request.output / f"{split}.parquet", problems, Problem)
    in_both = shared(loaded, test)
    if in_both:
        logger.warning("%d test problems are among the training problems too", in_both)
    counts = {"train": len(train), "held_out": len(held_out), "test": len(test), "in_both": in_both}
    write_json(request.output / "counts.json", counts)


def draw(problems: list[Problem], limit: int | None, *, seed: int, split: Split) -> list[Problem]:
    """At most `limit` problems, drawn by the seed, in the order of the data; all where `limit` is None."""
    if limit is None or limit >= len(problems):
        return problems
    chosen = random.Random(derive_seed(seed, "limit", split)).sample(range(len(problems)), limit)
    return [problems[position] for position in sorted(chosen)]


def set_aside(problems: list[Problem], held_out: int | float, *, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(problems to train on, held-out problems), each in the order of the data.

    Args:
        held_out: How many are held out, or their share below 1, which is at least one problem.

    Raises:
        UserError: none would be left to train on.
    """
    count = held_out if isinstance(held_out, int) else max(1, round(held_out * len(problems)))
    if count >= len(problems):
        raise UserError(
            f"selection.held_out = {held_out}, and data.train has {len(problems)} problems within its limit",
            f"{count} held-out problems must leave some to train on",
            "lower selection.held_out, or raise data.train_limit",
        )
    chosen = set(random.Random(derive_seed(seed, "held_out")).sample(range(len(problems)), count))
    train = [problem for position, problem in enumerate(problems) if position not in chosen]
    return train, [problems[position] for position in sorted(chosen)]


def shared(train: Sequence[Problem], test: Sequence[Problem]) -> int:
    """How many test problems occur among the training problems (contamination): same question, same options."""
    known = {(problem.question, problem.option_texts) for problem in train}
    return sum((problem.question, problem.option_texts) in known for problem in test)
