"""How much there is to do in an iteration: problems, tokens, pairs, steps, each with where the figure is from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from irpo_megatron.artifacts import MANIFEST
from irpo_megatron.config import Config
from irpo_megatron.planning.batches import Lengths
from irpo_megatron.records import Pair, Problem, row_count


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is taken for a task where nothing better is known.

    Attributes:
        train: Problems in the public data set; likewise `test`.
        prompt: Mean tokens, with Llama 2's tokenizer.
        completion: Mean tokens of a sample.
        pair_share: Share of the problems with both a winner and a loser.
    """

    train: int
    test: int
    prompt: int
    completion: int
    pair_share: float


# Problems: the data sets' own counts. Tokens: about 60 of a question and as many of the prompt around it (MATH: four
# examples besides). Pairs: what the paper's counts of pairs come to (its table of settings).
TASKS = {
    "gsm8k": Expected(train=7473, test=1319, prompt=120, completion=250, pair_share=0.9),
    "math": Expected(train=7500, test=5000, prompt=900, completion=300, pair_share=0.67),
    "arc": Expected(train=1119, test=1172, prompt=130, completion=250, pair_share=0.9),
    "arithmetic": Expected(train=1000, test=1000, prompt=12, completion=28, pair_share=0.9),
}
# Beyond its mean, a prompt's length is taken to reach this many times it.
_LONGEST_PROMPT = 3


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says; None where nothing."""

    problems: int | None = None
    test_problems: int | None = None
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    pairs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """An iteration's counts.

    Attributes:
        problems: That are sampled from.
        rows: Distinct completions that the reference pass computes.
        sources: A sentence on each figure that the configuration does not give.
    """

    problems: int
    held_out: int
    test_problems: int
    lengths: Lengths
    pairs: int
    rows: int
    steps: int
    sources: tuple[str, ...]


def workload_of(config: Config, given: Given) -> Workload:
    """The counts by what the user says, else by the run directory, else by the task's expectation."""
    expected, measured = TASKS[config.task], _measured(config.run_dir)
    sources: list[str] = []

    def choose(name: str, said: float | None, found: float | None, otherwise: float) -> float:
        value, origin = (said, "as given") if said is not None else (found, f"as in {config.run_dir}")
        if value is None:
            value, origin = otherwise, f"expected for {config.task}"
        sources.append(f"{name}: {value:,.0f}, {origin}")
        return value

    train = choose(
        "training problems", given.problems, measured.get("train"), _problems(config, "train", expected.train)
    )
    test = choose("test problems", given.test_problems, measured.get("test"), _problems(config, "test", expected.test))
    wanted = config.selection.held_out
    held_out = int(wanted if wanted >= 1 or wanted == 0 else wanted * train)
    # The counts of a run directory are those after the split.
    left = int(train) if "train" in measured and given.problems is None else max(1, int(train) - held_out)
    sampled = left + (held_out if config.selection.retrain else 0)
    sampled = min(sampled, config.data.problems_per_iteration or sampled)
    prompt = choose("tokens of a prompt", given.prompt_tokens, measured.get("prompt"), expected.prompt)
    completion = choose(
        "tokens of a completion",
        given.completion_tokens,
        measured.get("completion"),
        min(expected.completion, config.generation.max_tokens),
    )
    lengths = Lengths(
        prompt=prompt,
        completion=completion,
        longest_prompt=max(measured.get("longest_prompt", _LONGEST_PROMPT * prompt), prompt),
        longest_completion=max(config.generation.max_tokens, completion),
    )
    per_prompt = config.pairs.per_prompt if config.method != "sft" else 1
    share = expected.pair_share if config.method != "sft" else 1.0
    pairs = choose("pairs", given.pairs, measured.get("pairs"), max(1.0, sampled * per_prompt * share))
    pairs = int(min(pairs, config.pairs.max_pairs or pairs))
    steps = config.training.epochs * math.ceil(pairs / config.training.global_batch_size)
    return Workload(
        problems=sampled,
        held_out=held_out,
        test_problems=int(test),
        lengths=lengths,
        pairs=pairs,
        rows=min(2 * pairs, sampled * config.generation.samples),
        steps=min(steps, config.training.max_steps or steps),
        sources=tuple(sources),
    )


def _problems(config: Config, split: str, expected: int) -> int:
    """The task's, or what `generate:...:N` says, within the limit."""
    source, limit = getattr(config.data, split), getattr(config.data, f"{split}_limit")
    made = re.fullmatch(r"generate:.*:(\d+)", source)
    count = int(made.group(1)) if made else expected
    return min(count, limit or count)


def _measured(run_dir: Path) -> dict[str, float]:
    """What the committed stages of a run have counted; of the last iteration that has them."""
    found: dict[str, float] = {}
    if (run_dir / "problems" / MANIFEST).is_file():
        for split in ("train", "test"):
            found[split] = row_count(run_dir / "problems" / f"{split}.parquet", Problem)
    generations = _last(run_dir, "generations")
    if generations is not None:
        prompts = _list_lengths(sorted(generations.glob("*.parquet")), "prompt_ids")
        completions = _list_lengths(sorted(generations.glob("*.parquet")), "completion_ids")
        found |= {
            "prompt": sum(prompts) / len(prompts),
            "longest_prompt": max(prompts),
            "completion": sum(completions) / len(completions),
        }
    pairs = _last(run_dir, "pairs")
    if pairs is not None:
        found["pairs"] = row_count(pairs / "pairs.parquet", Pair)
    return found


def _last(run_dir: Path, stage: str) -> Path | None:
    committed = [path.parent for path in sorted(run_dir.glob(f"iteration-*/{stage}/{MANIFEST}"))]
    return committed[-1] if committed else None


def _list_lengths(shards: Sequence[Path], column: str) -> list[int]:
    lengths: list[int] = []
    for shard in shards:
        lengths += pc.list_value_length(pq.read_table(shard, columns=[column])[column]).to_pylist()
    return lengths
