"""GSM8K: grade-school word problems whose answers are numbers (paper, section 3.1)."""

from __future__ import annotations

import re

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks.base import Task
from irpo_megatron.tasks.extraction import MARKER, last_boxed
from irpo_megatron.tasks.numbers import parse_number
from irpo_megatron.tasks.reading import Record

# The paper's zero-shot prompt, word for word and with its line breaks.
_PROMPT = """\
Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready to \
answer, please use the format "Final answer: ..."
Question: {question}
Solution:"""

# The data marks each calculation for a calculator: `48/2 = <<48/2=24>>24`.
_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


class Gsm8kTask(Task):
    """Answers compare as exact numbers (`numbers.parse_number` says what is read as one)."""

    name = "gsm8k"

    def prompt(self, problem: Problem) -> str:
        return _PROMPT.format(question=problem.question)

    def canonical(self, answer: str) -> str | None:
        r"""The number in lowest terms. `\boxed{18}` is read too: models trained on MATH write it everywhere."""
        number = parse_number(last_boxed(answer) or answer)
        return None if number is None else str(number)

    def problem_from(self, record: Record, problem_id: str) -> Problem:
        """A record of `question` and `answer`, whose answer is a solution that ends in `#### 18`.

        The solution loses its calculator marks, and its last line becomes `Final answer: 18`, as the prompt asks.
        """
        reasoning, mark, gold = record.text("answer").rpartition("####")
        gold = gold.strip()
        if not mark or self.canonical(gold) is None:
            raise UserError(
                f"{record.where} has an 'answer' that ends in {(gold or reasoning)[-40:]!r}",
                "GSM8K's answer is a solution with #### and one number at its end",
                "correct the record, or point at the right file",
            )
        steps = _CALCULATOR_MARK.sub("", reasoning).rstrip()
        return Problem(
            id=problem_id,
            question=record.text("question"),
            answer=gold,
            solution=f"{steps}\n{MARKER} {gold}".lstrip(),
        )
