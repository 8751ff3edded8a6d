"""Rows from gold solutions, for method `sft`: one a problem, with nothing on the losing side."""

from __future__ import annotations

from collections.abc import Iterable

from irpo_megatron.pairs.build import GOLD_SAMPLE, Candidate, fault_of
from irpo_megatron.pairs.counts import Counts
from irpo_megatron.records import Pair, Problem
from irpo_megatron.tasks import Task
from irpo_megatron.tokenizer import Tokenizer

NO_SAMPLE = -1
"""Stands for the loser that a row does not have."""


def gold_candidate(problem: Problem, task: Task, tokenizer: Tokenizer) -> Candidate | None:
    """The gold solution as a completion of the problem's prompt; None where there is none, or one without text."""
    text = task.gold_completion(problem)
    if text is None or not text.strip():
        return None
    return Candidate(
        sample_index=GOLD_SAMPLE, text=text, ids=tokenizer.encode_completion(text, after=task.prompt(problem))
    )


def gold_rows(
    problems: Iterable[tuple[Problem, bool]], task: Task, tokenizer: Tokenizer, *, longest: int
) -> tuple[list[Pair], Counts]:
    """One row a problem that has a gold solution, in the order of the problems.

    Args:
        problems: (problem, whether it is held out).
        longest: Longest sequence in tokens, prompt included; a longer row is dropped.
    """
    rows, total, without_gold, too_long = [], 0, 0, 0
    for problem, held_out in problems:
        total += 1
        gold = gold_candidate(problem, task, tokenizer)
        if gold is None:
            without_gold += 1
            continue
        row = _row(problem, task.prompt(problem), gold, tokenizer, held_out)
        if fault_of(row, longest) is None:
            rows.append(row)
        else:
            too_long += 1  # one side is empty, so the two cannot be identical
    counts = Counts(
        problems=total,
        problems_paired=total - without_gold,
        problems_without_gold=without_gold,
        gold_winners=total - without_gold,
        pairs_too_long=too_long,
        pairs=len(rows),
    )
    return rows, counts


def _row(problem: Problem, prompt: str, gold: Candidate, tokenizer: Tokenizer, held_out: bool) -> Pair:
    return Pair(
        pair_id=f"{problem.id}/000",
        prompt_id=problem.id,
        prompt=prompt,
        chosen=gold.text,
        rejected="",
        prompt_ids=tokenizer.encode_prompt(prompt),
        chosen_ids=gold.ids,
        rejected_ids=(),
        chosen_sample=gold.sample_index,
        rejected_sample=NO_SAMPLE,
        held_out=held_out,
    )
