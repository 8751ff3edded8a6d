r"""MATH: competition problems whose answers are formulas in LaTeX (paper, section 3.3)."""

from __future__ import annotations

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks.base import Task
from irpo_megatron.tasks.extraction import MARKER, final_answer, last_boxed, unwrap
from irpo_megatron.tasks.latex import normal_form
from irpo_megatron.tasks.math_examples import EXAMPLES
from irpo_megatron.tasks.math_verify_client import require_math_verify, verified_equal
from irpo_megatron.tasks.reading import Record
from irpo_megatron.tasks.verdict import Verdict

# The paper's four-shot prompt, word for word and with its line breaks; `math_examples` says whose examples they are.
_PROMPT = "\n".join(
    [
        "Your task is to answer the last question below. Give step by step reasoning before you answer, and when "
        "you're ready to answer, please wrap your answer in \\boxed, and conclude using the format "
        '"Final answer: ..."',
        *(f"Question: {question}\nSolution: {solution}\n{MARKER} {answer}" for question, solution, answer in EXAMPLES),
        "Question: ",
    ]
)


class MathTask(Task):
    """Answers compare as LaTeX.

    `strict` compares normal forms (`latex.normal_form`): quick, but blind to algebra, so that `1+x` is not `x+1`.
    `math-verify` asks the package of that name where the normal forms differ: it knows algebra, sets and intervals,
    and takes about 20 ms a pair.
    """

    name = "math"
    gradings = ("strict", "math-verify")

    def __init__(self, grading: str | None = None) -> None:
        super().__init__(grading)
        if self.grading == "math-verify":
            require_math_verify()

    def prompt(self, problem: Problem) -> str:
        return f"{_PROMPT}{problem.question}\nSolution:"

    def extract_answer(self, completion: str) -> str | None:
        r"""What follows the last `Final answer:`, out of its `\boxed{}` or `$...$`; failing that, the last box."""
        answer = final_answer(completion)
        return (answer and unwrap(answer)) or last_boxed(completion)

    def canonical(self, answer: str) -> str | None:
        return normal_form(answer)

    def verdict(self, answer: str, gold: str) -> Verdict:
        verdict = super().verdict(answer, gold)
        if verdict is Verdict.RIGHT or self.grading == "strict":
            return verdict
        return verified_equal(answer, gold)

    def problem_from(self, record: Record, problem_id: str) -> Problem:
        r"""A record of `problem` and `solution`, whose gold answer is the `answer` column where there is one, else the
        last `\boxed{}` of the solution. With an `answer` column the solution may be missing.
        """
        answer = record.optional_text("answer")
        solution = record.text("solution") if answer is None else record.optional_text("solution")
        gold = " ".join((answer or last_boxed(solution or "") or "").split())  # on one line, as the marker's text
        if self.canonical(gold) is None:
            raise UserError(
                f"{record.where} has a 'solution' that ends in {(solution or '')[-40:]!r} and the answer {gold[:40]!r}",
                r"a solution holds its answer in \boxed{...}, unless there is an 'answer' column",
                "correct the record, or point at the right file",
            )
        return Problem(
            id=problem_id,
            question=record.text("problem"),
            answer=gold,
            solution=None if solution is None else f"{solution}\n{MARKER} {gold}",
        )
