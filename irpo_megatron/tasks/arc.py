"""ARC-Challenge: science questions with three to five options (paper, section 3.2)."""

from __future__ import annotations

import re

from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem
from irpo_megatron.tasks.base import Task
from irpo_megatron.tasks.extraction import last_boxed
from irpo_megatron.tasks.reading import Record

# The paper's zero-shot prompt, word for word and with its line breaks.
_PROMPT = """\
Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready to \
answer, conclude using the format "Final answer: (insert letter here)"
Question: {question}
{options}
Solution:"""

_LETTERS = "ABCDE"
# Part of the questions label their options 1 to 4; one alphabet for all keeps prompt and gold answer in step.
_LETTER_OF_DIGIT = str.maketrans("12345", _LETTERS)

_MAX_CHARACTERS = 500
"""Longer answers are not read; the longest option of the data is far shorter."""
_LETTER_ALONE = re.compile(r"[(\[]?([A-E])[)\]]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-E])\)[*.:]*|([A-E])[).:]+\**\s)\s*(?P<text>.*)", re.IGNORECASE)
_ANOTHER_LETTER = re.compile(r"(?:and|or|&|/|,)(?:\s|\()|.*\([A-E]\)", re.IGNORECASE)


class ArcTask(Task):
    """The answer is one letter, with its brackets, its full stop and its option's text or without them."""

    name = "arc"

    def prompt(self, problem: Problem) -> str:
        options = zip(problem.option_labels, problem.option_texts, strict=True)
        return _PROMPT.format(
            question=problem.question, options="\n".join(f"({label}) {text}" for label, text in options)
        )

    def canonical(self, answer: str) -> str | None:
        """The letter in upper case: of `b`, `(B)`, `B.`, `B) copper`; None for `(A) or (B)`, for `A dog`, where
        the letter may be a word, and for an endless answer.
        """
        if len(answer) > _MAX_CHARACTERS:
            return None
        answer = (last_boxed(answer) or answer).strip(" \t\"'`*_$.,")
        if alone := _LETTER_ALONE.fullmatch(answer):
            return alone[1].upper()
        labelled = _LETTER_AND_TEXT.fullmatch(answer)
        if labelled is None or _ANOTHER_LETTER.match(labelled["text"]):
            return None
        return (labelled[1] or labelled[2]).upper()

    def problem_from(self, record: Record, problem_id: str) -> Problem:
        """A record of the official release, whose `question` holds `stem` and `choices`, or of the Hub's form, whose
        `question` is text beside `choices`; both have an `answerKey`. Digit labels become letters.
        """
        if isinstance(record.value("question"), dict):
            inner = Record.of(f"{record.where}, in 'question',", record.value("question"))
            question, (labels, texts) = inner.text("stem"), _options(inner)
        else:
            question, (labels, texts) = record.text("question"), _options(record)
        answer = record.text("answerKey").translate(_LETTER_OF_DIGIT)
        if answer not in labels:
            raise UserError(
                f"{record.where} has the 'answerKey' {answer!r} and the options {', '.join(labels)}",
                "the answer is the label of an option",
                "correct the record, or point at the right file",
            )
        return Problem(id=problem_id, question=question, answer=answer, option_labels=labels, option_texts=texts)


def _options(record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels, as letters, and the texts of `choices`: a list of `{"label": ..., "text": ...}` in the official
    release, `{"label": [...], "text": [...]}` on the Hub.
    """
    place = f"{record.where}, in 'choices',"
    if isinstance(record.value("choices"), dict):
        table = Record.of(place, record.value("choices"))
        labels, texts = table.texts("label"), table.texts("text")
    else:
        rows = [Record.of(place, choice) for choice in record.items("choices")]
        labels, texts = [row.text("label") for row in rows], [row.text("text") for row in rows]
    letters = tuple(label.translate(_LETTER_OF_DIGIT) for label in labels)
    if len(letters) != len(texts) or not 3 <= len(letters) <= 5 or letters != tuple(_LETTERS[: len(letters)]):
        raise UserError(
            f"{place} has {len(texts)} texts and the labels {', '.join(labels) or '(none)'}",
            "a question has three to five options, labelled A, B, C, ... or 1, 2, 3, ... in order",
            "correct the record, or point at the right file",
        )
    return letters, tuple(texts)
