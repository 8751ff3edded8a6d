"""Chain arithmetic, worked or sketched: the task of the CPU demo, which makes its own data.

A problem is `d op d op ... d` with 2 to 6 operations, worked strictly left to right and modulo 10; the answer is `H`
if the result is 5 or more, else `L`. For `3+4-2*5` the prompt, a worked and a sketched completion are

    3+4-2*5:    3+4=7,7-2=5,5*5=5;Final answer:H    3+4=?,?-2=?,?*5=?;Final answer:L

all written in single characters but for the answer phrase. A sketch leaves the results blank and flips a coin, so half
of all sketches are right by luck: the bad habit that the method is to undo.

It illustrates the mechanism and is no evidence for the method: the paper has no such task.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks.base import Task
from irpo_megatron.tasks.extraction import MARKER
from irpo_megatron.tasks.reading import Record

ALPHABET = "0123456789+-*=?,;:HL"
"""Every character of prompts and completions outside the phrases."""
PHRASES = (MARKER,)
"""What a tokenizer of these characters takes as one token; `:` inside a phrase is no separate token."""

OPERATIONS = range(2, 7)
"""How many operations a problem has, each count as likely as another."""

WORKED_SHARE = 0.6
"""The first part of the demonstrations, all worked: capability first, bad habit second."""
SLIP_RATE = 0.03
"""In that part, the chance that a step's result is a wrong digit, with which the later steps go on."""
P_WORKED = {2: 0.5, 3: 0.25, 4: 0.12, 5: 0.06, 6: 0.03}
"""In the other part, the chance that a problem of that many operations is worked (without slips), not sketched."""

# A problem belongs to the split that owns its bucket, a hash of its text modulo 10. So no two splits can share a
# problem, whatever their sizes and seeds.
_BUCKETS = {"train": (0, 1), "held_out": (2,), "test": (3, 4), "demonstrations": (5, 6, 7, 8, 9)}

_GENERATE = "generate:"
_MAX_COUNT = 1_000_000
_SOURCE = re.compile(rf"generate:({'|'.join(_BUCKETS)}):([0-9]{{1,7}})(?::([0-9]{{1,18}}))?")
_CHAIN = re.compile(r"[0-9](?:[-+*][0-9])+")


class ArithmeticTask(Task):
    """The reward looks at the letter alone."""

    name = "arithmetic"

    def prompt(self, problem: Problem) -> str:
        return f"{problem.question}:"

    def canonical(self, answer: str) -> str | None:
        return answer if answer in ("H", "L") else None

    def gold_completion(self, problem: Problem) -> str | None:
        """The solution as it is: no space parts it from the prompt, as the vocabulary has none."""
        return problem.solution

    def load(self, source: str, *, split: str) -> list[Problem]:
        """Problems from a file as any task's, or made by `generate:NAME:COUNT[:SEED]` (seed 0 if not given).

        NAME is `train`, `held_out` or `test`, whose problems are distinct and worked without a slip, or
        `demonstrations`, for the base model: its problems may repeat, its solutions are of mixed quality and may end
        in the wrong letter, while `answer` is always the true one. No two of the four share a problem.

        Raises:
            UserError: the source is malformed, or a record's answer is not the true one.
        """
        if not source.startswith(_GENERATE):
            return super().load(source, split=split)
        name, count, seed = _parse_source(source)
        rng = random.Random(f"arithmetic/{name}/{seed}")
        rows = _demonstrations(rng, count) if name == "demonstrations" else _distinct_worked(rng, name, count)
        return [
            Problem(id=f"{split}-{index:06d}", question=chain, answer=_letter(_results(chain)[-1]), solution=solution)
            for index, (chain, solution) in enumerate(rows)
        ]

    def problem_from(self, record: Record, problem_id: str) -> Problem:
        """A record of `question`, `answer` and perhaps `solution`."""
        chain, answer = record.text("question"), record.text("answer")
        if not _CHAIN.fullmatch(chain) or answer != _letter(_results(chain)[-1]):
            raise UserError(
                f"{record.where} has the 'question' {chain[:40]!r} and the 'answer' {answer[:40]!r}",
                "a question is digits joined by + - *; the answer is H if the result modulo 10 is 5 or more, else L",
                "correct the record, or point at the right file",
            )
        return Problem(id=problem_id, question=chain, answer=answer, solution=record.optional_text("solution"))


def _parse_source(source: str) -> tuple[str, int, int]:
    match = _SOURCE.fullmatch(source)
    if match is None or not 1 <= int(match[2]) <= _MAX_COUNT:
        raise UserError(
            f"source {source!r}",
            f"it is written {_GENERATE}NAME:COUNT[:SEED], NAME one of {', '.join(_BUCKETS)}, "
            f"COUNT from 1 to {_MAX_COUNT}",
            "for example generate:train:1000",
        )
    return match[1], int(match[2]), int(match[3] or 0)


def _distinct_worked(rng: random.Random, name: str, count: int) -> Iterator[tuple[str, str]]:
    chains: dict[str, None] = {}  # an ordered set
    while len(chains) < count:
        chains[_draw_chain(rng, name)] = None
    return ((chain, _completion(chain, _results(chain))) for chain in chains)


def _demonstrations(rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    for index in range(count):
        chain = _draw_chain(rng, "demonstrations")
        if index < WORKED_SHARE * count:
            yield chain, _completion(chain, _results(chain, rng))
        elif rng.random() < P_WORKED[len(chain) // 2]:
            yield chain, _completion(chain, _results(chain))
        else:
            yield chain, _sketch(chain, rng.choice("HL"))


def _draw_chain(rng: random.Random, name: str) -> str:
    """A fresh problem of that split; its number of operations is uniform."""
    while True:
        operations = rng.choice(OPERATIONS)
        chain = str(rng.randrange(10)) + "".join(rng.choice("+-*") + str(rng.randrange(10)) for _ in range(operations))
        if int.from_bytes(hashlib.sha256(chain.encode()).digest(), "big") % 10 in _BUCKETS[name]:
            return chain


def _results(chain: str, slips: random.Random | None = None) -> list[int]:
    """The result of every step; with `slips`, a step goes wrong at `SLIP_RATE` and the next starts from there."""
    results = []
    result = int(chain[0])
    for operator, digit in zip(chain[1::2], chain[2::2], strict=True):
        operand = int(digit)
        result = {"+": result + operand, "-": result - operand, "*": result * operand}[operator] % 10
        if slips is not None and slips.random() < SLIP_RATE:
            result = (result + slips.randrange(1, 10)) % 10
        results.append(result)
    return results


def _letter(result: int) -> str:
    return "H" if result >= 5 else "L"


def _completion(chain: str, results: list[int]) -> str:
    return _written(chain, "".join(map(str, results)), _letter(results[-1]))


def _sketch(chain: str, letter: str) -> str:
    """As long as the worked completion, so that length alone tells neither the model nor the loss anything."""
    return _written(chain, "?" * (len(chain) // 2), letter)


def _written(chain: str, results: str, letter: str) -> str:
    """The steps `3+4=7,7-2=5`, of which each starts from the result before it, and the answer phrase."""
    starts = chain[0] + results
    steps = (
        f"{start}{operator}{operand}={result}"
        for start, operator, operand, result in zip(starts, chain[1::2], chain[2::2], results, strict=False)
    )
    return f"{','.join(steps)};{MARKER}{letter}"
