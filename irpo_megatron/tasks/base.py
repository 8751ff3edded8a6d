"""What every task is: a prompt, an answer taken from a completion, a verdict, and a loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks.extraction import final_answer
from irpo_megatron.tasks.reading import Record, read_records
from irpo_megatron.tasks.verdict import Judgement, Verdict

MAX_COMPLETION_CHARACTERS = 200_000
"""Of a longer completion only the end is read, where a final answer stands."""
MAX_ANSWER_CHARACTERS = 1000
"""A longer answer is recorded cut; no task reads one of even half that length, so the cut changes no verdict."""


class Task(ABC):
    """One kind of problem. A task holds no data: it turns text into other text, and can be pickled.

    A task says how a problem is asked (`prompt`), what a record of its data is (`problem_from`), and how an answer
    is written in one agreed way (`canonical`); the rest follows. An answer is right when its canonical form is that
    of the gold answer, which makes the canonical form the key to count votes by (maj@k) as well.
    """

    name: ClassVar[str]
    gradings: ClassVar[tuple[str, ...]] = ("exact",)
    """The ways to compare an answer with the gold one; the first is the default."""

    def __init__(self, grading: str | None = None) -> None:
        """Choose a grading; None is the default one.

        Raises:
            UserError: the task has no such grading, or it needs a package that is not installed.
        """
        self.grading = self.gradings[0] if grading is None else grading
        if self.grading not in self.gradings:
            raise UserError(
                f"grading {grading!r} for the task {self.name}",
                f"the gradings of {self.name} are {', '.join(self.gradings)}",
                "choose one of them, or leave it out",
            )

    @abstractmethod
    def prompt(self, problem: Problem) -> str:
        """The text that the model continues."""

    @abstractmethod
    def canonical(self, answer: str) -> str | None:
        """The answer as this task writes it, the same for all equal answers; None where it cannot be read."""

    @abstractmethod
    def problem_from(self, record: Record, problem_id: str) -> Problem:
        """One record of the data as a problem.

        Raises:
            UserError: a column is missing, or the record has no gold answer.
        """

    def extract_answer(self, completion: str) -> str | None:
        """The final answer as the completion words it, or None, which counts as wrong (paper, section 2)."""
        return final_answer(completion)

    def is_correct(self, completion: str, gold: str) -> bool:
        """The reward: whether the completion's final answer is the gold one (paper, section 2)."""
        return self.judge(completion, gold).verdict is Verdict.RIGHT

    def judge(self, completion: str, gold: str) -> Judgement:
        """The completion's final answer and the verdict on it; without an answer it is wrong."""
        answer = self.extract_answer(completion[-MAX_COMPLETION_CHARACTERS:])
        if answer is None:
            return Judgement(None, Verdict.WRONG)
        return Judgement(answer[:MAX_ANSWER_CHARACTERS], self.verdict(answer, gold))

    def verdict(self, answer: str, gold: str) -> Verdict:
        """Whether an extracted answer is the gold one; an answer that cannot be read never is."""
        key = self.canonical(answer)
        return Verdict.RIGHT if key is not None and key == self.canonical(gold) else Verdict.WRONG

    def load(self, source: str, *, split: str) -> list[Problem]:
        """The problems of a file, a folder or a Hub data set, numbered by their position: `train-000017`.

        `source` is what `reading.read_records` takes.

        Raises:
            UserError: the source is missing, empty or malformed; the message names the file and the line.
        """
        records = read_records(source, split=split)
        return [self.problem_from(record, f"{split}-{index:06d}") for index, record in enumerate(records)]

    def gold_completion(self, problem: Problem) -> str | None:
        """The gold solution as a completion of the prompt, or None where the data has no solution.

        The prompts end in `Solution:`, so a completion begins with a space.
        """
        return None if problem.solution is None else f" {problem.solution}"
