"""Some problems with what the models wrote about them, as data for the browser at the end of the page.

Which problems: the first by id, so that one problem can be followed through the iterations and two reports compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.artifacts import Json
from irpo_megatron.records import Pair, Problem, Sample, Score
from irpo_megatron.report.columns import first_ids, rows_of
from irpo_megatron.report.run_files import Iteration, Run

PROBLEMS = 20
"""Test problems, and as many training problems, that an iteration shows."""
SAMPLES = 4
"""Sampled completions of a training problem that an iteration shows: the first by index, right or wrong."""
CHARACTERS = 4000
"""Of a prompt or completion; the middle of a longer one is left out."""
_TAIL = 1000
"""Of those, so many from the end, where the final answer stands."""
BYTES = 800_000
"""What all of it may take in the page."""


@dataclass(frozen=True, kw_only=True)
class SampleBrowser:
    """What the page embeds."""

    json: str
    """Safe inside a script element: whatever a model wrote, no `<` is left in it."""
    iterations: tuple[int, ...]
    cards: int
    """Problems, test and training."""
    problems: int
    """Test problems, and as many training problems, that an iteration shows at most."""
    characters: str
    """How long a text may be before its middle is left out."""


def sample_browser(run: Run) -> SampleBrowser:
    """As many problems as fit into `BYTES`, `PROBLEMS` at most; one is shown even where it does not fit."""
    from jinja2.utils import htmlsafe_json_dumps

    problems = PROBLEMS
    while True:
        cards = _collect(run, problems)
        encoded = htmlsafe_json_dumps(cards, ensure_ascii=False, separators=(",", ":"))
        if problems == 1 or len(encoded.encode()) <= BYTES:
            break
        problems = problems * 2 // 3
    iterations = {completion["iteration"] for card in cards for completion in card["completions"]}
    return SampleBrowser(
        json=encoded,
        iterations=tuple(sorted(iterations)),
        cards=len(cards),
        problems=problems,
        characters=f"{CHARACTERS:,}",
    )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The completions of one kind in one iteration, and where their verdicts stand."""

    kind: str
    """`test` or `training`."""
    iteration: int
    samples: list[Path]
    scores: list[Path]
    pairs: list[Path]


def _collect(run: Run, problems: int) -> list[Json]:
    """A card a problem, test before training and by id, with its completions in the order of iterations."""
    cards: dict[tuple[str, str], Json] = {}
    for iteration in run.iterations:
        for source in _sources(iteration):
            _add(cards, source, problems)
    _add_gold(cards, run.directory / "problems")
    return [cards[key] for key in sorted(cards)]


def _sources(iteration: Iteration) -> list[_Source]:
    sources = []
    evaluation, generations = iteration.committed("evaluation"), iteration.committed("generations")
    if evaluation is not None:
        sources.append(
            _Source(
                kind="test",
                iteration=iteration.number,
                samples=sorted(evaluation.glob("greedy-*.parquet")),
                scores=sorted(evaluation.glob("greedy_scores.parquet")),
                pairs=[],
            )
        )
    if generations is not None:
        sources.append(
            _Source(
                kind="training",
                iteration=iteration.number,
                samples=sorted(generations.glob("*.parquet")),
                scores=_shards(iteration, "scores"),
                pairs=_shards(iteration, "pairs"),
            )
        )
    return sources


def _shards(iteration: Iteration, stage: str) -> list[Path]:
    directory = iteration.committed(stage)
    return sorted(directory.glob("*.parquet")) if directory else []


def _add(cards: dict[tuple[str, str], Json], source: _Source, problems: int) -> None:
    """Put the completions of one source on the cards of their problems."""
    ids = first_ids(source.samples, Sample, "prompt_id", problems)
    columns = ("prompt_id", "sample_index", "prompt", "completion", "finish_reason")
    samples = [
        row for row in rows_of(source.samples, Sample, columns, "prompt_id", ids) if row["sample_index"] < SAMPLES
    ]
    verdicts = ("prompt_id", "sample_index", "answer", "correct", "graded")
    scores = {
        (row["prompt_id"], row["sample_index"]): row
        for row in rows_of(source.scores, Score, verdicts, "prompt_id", ids)
    }
    uses = _uses(source.pairs, ids)
    for row in sorted(samples, key=lambda row: (row["prompt_id"], row["sample_index"])):
        card = cards.setdefault((source.kind, row["prompt_id"]), _card(source.kind, row))
        key = (row["prompt_id"], row["sample_index"])
        score, use = scores.get(key), uses.get(key)
        card["completions"].append(
            {
                "iteration": source.iteration,
                "index": row["sample_index"],
                "text": _cut(row["completion"]),
                "verdict": _verdict(score),
                **({"answer": score["answer"]} if score and score["answer"] is not None else {}),
                **({"truncated": True} if row["finish_reason"] == "length" else {}),
                **({"use": use} if use else {}),
            }
        )


def _card(kind: str, row: Json) -> Json:
    """A problem before any completion and its gold answer are on it."""
    return {"kind": kind, "id": row["prompt_id"], "prompt": _cut(row["prompt"]), "gold": None, "completions": []}


def _verdict(score: Json | None) -> str:
    if score is None:
        return "unscored"
    if not score["graded"]:
        return "ungraded"
    if score["answer"] is None:
        return "unparsable"
    return "right" if score["correct"] else "wrong"


def _uses(shards: list[Path], ids: list[str]) -> dict[tuple[str, int], Json]:
    """In how many pairs a sample is the chosen one, and in how many the rejected one."""
    uses: dict[tuple[str, int], Json] = {}
    for row in rows_of(shards, Pair, ("prompt_id", "chosen_sample", "rejected_sample"), "prompt_id", ids):
        for half in ("chosen", "rejected"):
            use = uses.setdefault((row["prompt_id"], row[f"{half}_sample"]), {})
            use[half] = use.get(half, 0) + 1
    return uses


def _add_gold(cards: dict[tuple[str, str], Json], problems: Path) -> None:
    by_id: dict[str, list[Json]] = {}
    for (_, problem_id), card in cards.items():
        by_id.setdefault(problem_id, []).append(card)
    for row in rows_of(sorted(problems.glob("*.parquet")), Problem, ("id", "answer"), "id", by_id):
        for card in by_id[row["id"]]:
            card["gold"] = row["answer"]


def _cut(text: str) -> Json:
    """The text, or its two ends and how many characters are missing between them."""
    left_out = len(text) - CHARACTERS
    if left_out <= 0:
        return {"head": text}
    return {"head": text[: CHARACTERS - _TAIL], "left_out": left_out, "tail": text[-_TAIL:]}
