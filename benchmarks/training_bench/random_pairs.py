"""Inputs where only sizes matter: a random Llama, and pairs of random tokens of given lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.training_bench.inputs import Inputs
from irpo_megatron.base_model.random_llama import write_random_llama
from irpo_megatron.config import RandomModel
from irpo_megatron.records import Pair, write_rows


def random_inputs(
    folder: Path, shape: RandomModel, *, vocabulary: int, lengths: Sequence[tuple[int, int, int]]
) -> Inputs:
    """Write the model and the pairs below `folder`.

    Args:
        lengths: Tokens of each pair's prompt, chosen and rejected completion.
    """
    model_folder, pair_rows = folder / "model", folder / "pairs"
    model_folder.mkdir()
    pair_rows.mkdir()
    write_random_llama(model_folder, shape, vocabulary=vocabulary, seed=0)
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(count))

    rows = [
        Pair(
            pair_id=f"pair-{number}",
            prompt_id=f"train-{number}",
            prompt="",
            chosen="",
            rejected="",
            prompt_ids=tokens(prompt),
            chosen_ids=tokens(chosen),
            rejected_ids=tokens(rejected),
            chosen_sample=0,
            rejected_sample=1,
            held_out=False,
        )
        for number, (prompt, chosen, rejected) in enumerate(lengths)
    ]
    write_rows(pair_rows / "pairs.parquet", rows, Pair)
    return Inputs(
        model_folder=model_folder, pair_rows=pair_rows, shape=shape, pairs=rows, question_tokens=0, solution_tokens=0
    )
