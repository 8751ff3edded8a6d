"""What both sides train on: a random Llama with a BPE tokenizer, and pairs of real GSM8K solutions.

A pair is a problem's gold solution against the solution of a problem close by. Speed depends on how long texts are,
not on what they say, and these have the lengths of GSM8K.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer

from irpo_megatron.base_model.random_llama import write_random_llama
from irpo_megatron.base_model.tokenizers import BOS, BOS_ID, SPECIAL_TOKENS, write_tokenizer
from irpo_megatron.config import RandomModel, RandomTokenizer
from irpo_megatron.records import Pair, Problem, write_rows
from irpo_megatron.tasks import Task, load_task
from irpo_megatron.tokenizer import Tokenizer

VOCABULARY = 32_000
# Learned from GSM8K alone, so few merges compress it as well as Llama 2's 32,000 do; the other ids are never seen.
MERGED_VOCABULARY = 3_000
# How many of the following problems may give the rejected solution: the one of the nearest length does, since wrong
# solutions of a problem are about as long as right ones.
NEIGHBOURS = 3

_BPE = RandomTokenizer(kind="bpe", vocabulary=VOCABULARY)
SIZES = {
    # Only to see whether everything runs.
    "tiny": RandomModel(tokenizer=_BPE, hidden_size=64, layers=2, heads=4, kv_heads=4, ffn_size=192, context=1024),
    "60m": RandomModel(tokenizer=_BPE, hidden_size=512, layers=8, heads=8, kv_heads=8, ffn_size=1408, context=1024),
    "1b": RandomModel(tokenizer=_BPE, hidden_size=2048, layers=22, heads=32, kv_heads=4, ffn_size=5632, context=2048),
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files and figures of one benchmark."""

    model_folder: Path
    pair_rows: Path
    shape: RandomModel
    pairs: list[Pair]
    question_tokens: float
    """Mean of the question alone; Llama 2's tokenizer: about 60."""
    solution_tokens: float
    """Mean of a solution with its end token; Llama 2's tokenizer: 100 to 130."""

    @property
    def useful_tokens(self) -> int:
        """Tokens of one pass over the pairs: every prompt once, chosen, rejected; no padding."""
        return sum(len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in self.pairs)


def make_inputs(folder: Path, data: Path, *, size: str, pairs: int) -> Inputs:
    """Write the model and the pairs below `folder`."""
    task = load_task("gsm8k")
    problems = task.load(str(data), split="train")
    shape = SIZES[size]
    model_folder, pair_rows = folder / "model", folder / "pairs"
    model_folder.mkdir(parents=True, exist_ok=True)
    pair_rows.mkdir(parents=True, exist_ok=True)
    write_tokenizer(learn_tokenizer(task, problems), model_folder, context=shape.context)
    write_random_llama(model_folder, shape, vocabulary=VOCABULARY, seed=0)
    tokenizer = Tokenizer(model_folder)
    chosen = [index * len(problems) // pairs for index in range(pairs)]  # spread evenly over the file
    rows = [pair_of(problems, index, task, tokenizer) for index in chosen]
    write_rows(pair_rows / "pairs.parquet", rows, Pair)
    return Inputs(
        model_folder=model_folder,
        pair_rows=pair_rows,
        shape=shape,
        pairs=rows,
        question_tokens=statistics.mean(len(tokenizer.encode_prompt(problems[i].question)) - 1 for i in chosen),
        solution_tokens=statistics.mean(len(row.chosen_ids) for row in rows),
    )


def learn_tokenizer(task: Task, problems: Sequence[Problem]) -> FastTokenizer:
    """Byte-level BPE of the training texts, each digit a token of its own, as in Llama."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED_VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    texts = (text for problem in problems for text in (task.prompt(problem), task.gold_completion(problem) or ""))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return tokenizer


def pair_of(problems: Sequence[Problem], index: int, task: Task, tokenizer: Tokenizer) -> Pair:
    """The gold solution of a problem against that of a neighbour."""
    problem = problems[index]
    chosen = task.gold_completion(problem)
    assert chosen is not None, "every problem of GSM8K has a solution"
    following = [problems[(index + step) % len(problems)] for step in range(1, NEIGHBOURS + 1)]
    candidates = [text for text in map(task.gold_completion, following) if text is not None and text != chosen]
    rejected = min(candidates, key=lambda text: abs(len(text) - len(chosen)))
    prompt = task.prompt(problem)
    return Pair(
        pair_id=f"{problem.id}/000",
        prompt_id=problem.id,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        prompt_ids=tokenizer.encode_prompt(prompt),
        chosen_ids=tokenizer.encode_completion(chosen, after=prompt),
        rejected_ids=tokenizer.encode_completion(rejected, after=prompt),
        chosen_sample=0,
        rejected_sample=1,
        held_out=False,
    )
