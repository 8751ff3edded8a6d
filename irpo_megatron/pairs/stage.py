"""Build the pairs of an iteration from its scored samples, or rows from gold solutions for method `sft`.

    python -m irpo_megatron.process irpo_megatron.pairs.stage REQUEST.json

Nothing of an earlier iteration is used again (paper, section 2).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from irpo_megatron.artifacts import write_json
from irpo_megatron.errors import UserError
from irpo_megatron.model_folder import open_model_folder
from irpo_megatron.pairs.build import limit_pairs, pair_problem
from irpo_megatron.pairs.counts import Counts
from irpo_megatron.pairs.gold import gold_candidate, gold_rows
from irpo_megatron.records import Pair, Problem, Sample, Score, read_rows, write_rows
from irpo_megatron.requests import PairsRequest
from irpo_megatron.seeds import derive_seed
from irpo_megatron.tasks import load_task
from irpo_megatron.tokenizer import Tokenizer


def run(request: PairsRequest) -> None:
    """Write `pairs.parquet` in the order of the problems, and `counts.json`.

    Raises:
        UserError: no pair is left to train on, gold solutions are wanted and there are none, or samples, scores and
            problems do not belong together.
    """
    context = open_model_folder(request.model_folder).context
    longest = min(request.pairs.max_tokens or context, context)
    pairs, counts = gold_pairs(request, longest) if request.method == "sft" else sampled_pairs(request, longest)
    kept = limit_pairs(pairs, request.pairs.max_pairs, seed=derive_seed(request.seed, "max_pairs", request.iteration))
    counts = dataclasses.replace(
        counts,
        pairs=len(kept),
        pairs_over_limit=len(pairs) - len(kept),
        pairs_held_out=sum(pair.held_out for pair in kept),
    )
    check_counts(counts, request)
    write_rows(request.output / "pairs.parquet", kept, Pair)
    write_json(request.output / "counts.json", counts.as_json())


def check_counts(counts: Counts, request: PairsRequest) -> None:
    """There is something to train on, and the gold solutions that are wanted.

    Raises:
        UserError: there is not.
    """
    wants_gold = request.method == "sft" or request.pairs.gold_as_winner
    if wants_gold and counts.problems_without_gold == counts.problems:
        raise UserError(
            f"none of the {counts.problems} problems has a gold solution",
            "method=sft trains on gold solutions, and pairs.gold_as_winner adds them to the winners",
            "use data with solutions; or method=irpo with pairs.gold_as_winner=false",
        )
    if counts.pairs == counts.pairs_held_out:
        raise UserError(
            f"no pair to train on is left: {counts}",
            "a problem gives pairs when it has a winner and a loser that are neither cut off, empty nor too long",
            "all right: harder problems or a higher generation.temperature; all wrong: more generation.samples, "
            "pairs.gold_as_winner=true or an easier start; truncated: a higher generation.max_tokens; "
            "too long: a higher pairs.max_tokens",
        )


def gold_pairs(request: PairsRequest, longest: int) -> tuple[list[Pair], Counts]:
    """The rows of method `sft`."""
    problems = read_problems(request)
    return gold_rows(problems.values(), load_task(request.task), Tokenizer(request.model_folder), longest=longest)


def sampled_pairs(request: PairsRequest, longest: int) -> tuple[list[Pair], Counts]:
    """The pairs of all sampled problems, in the order of the problems."""
    task, tokenizer, problems = load_task(request.task), Tokenizer(request.model_folder), read_problems(request)
    built: dict[str, list[Pair]] = {}
    counts = Counts()
    for samples, correct in sampled_problems(request):
        prompt_id = samples[0].prompt_id
        if prompt_id not in problems or prompt_id in built:
            raise _mismatch(request, f"samples of {prompt_id}, which is no problem of this run or was there before")
        problem, held_out = problems[prompt_id]
        gold = gold_candidate(problem, task, tokenizer) if request.pairs.gold_as_winner else None
        built[prompt_id], problem_counts = pair_problem(
            samples,
            correct,
            gold=gold,
            settings=request.pairs,
            longest=longest,
            seed=derive_seed(request.seed, "pairs", request.iteration, prompt_id),
            held_out=held_out,
        )
        lacks_gold = request.pairs.gold_as_winner and gold is None
        counts += problem_counts + Counts(problems_without_gold=int(lacks_gold))
    return [pair for prompt_id in problems for pair in built.get(prompt_id, [])], counts


def sampled_problems(request: PairsRequest) -> Iterator[tuple[list[Sample], dict[int, bool]]]:
    """One problem after the other: its samples, and sample index -> verdict. One shard is held at a time."""
    assert request.generations is not None, f"method {request.method} is built from samples"
    assert request.scores is not None, f"method {request.method} is built from scores"
    for shard in sorted(request.generations.glob("*.parquet")):
        verdicts = _verdicts(request.scores / shard.name)
        rows = sorted(read_rows(shard, Sample), key=lambda sample: sample.prompt_id)
        for prompt_id, group in itertools.groupby(rows, key=lambda sample: sample.prompt_id):
            samples = list(group)
            correct = verdicts.get(prompt_id, {})
            if {sample.sample_index for sample in samples} != correct.keys() or len(samples) != len(correct):
                raise _mismatch(
                    request, f"{len(samples)} samples and {len(correct)} scores of {prompt_id} that do not correspond"
                )
            yield samples, correct


def _verdicts(shard: Path) -> dict[str, dict[int, bool]]:
    """Problem id -> sample index -> whether that sample is right."""
    verdicts: dict[str, dict[int, bool]] = {}
    for score in read_rows(shard, Score):
        verdicts.setdefault(score.prompt_id, {})[score.sample_index] = score.correct
    return verdicts


def read_problems(request: PairsRequest) -> dict[str, tuple[Problem, bool]]:
    """Problem id -> (problem, whether it is held out); held-out problems only where a retraining will use them."""
    names = ("train", "held_out") if request.selection.retrain else ("train",)
    return {
        problem.id: (problem, name == "held_out")
        for name in names
        for problem in read_rows(request.problems / f"{name}.parquet", Problem)
    }


def _mismatch(request: PairsRequest, seen: str) -> UserError:
    return UserError(
        f"{request.generations} and {request.scores}: {seen}",
        "every sample belongs to a problem of this run, and has one score",
        "delete both directories so that they are computed again",
    )
