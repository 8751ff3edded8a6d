"""Make a small Llama with random weights, and a tokenizer for it.

python -m irpo_megatron.process irpo_megatron.base_model.stage REQUEST.json
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from irpo_megatron.base_model.random_llama import write_random_llama
from irpo_megatron.base_model.tokenizers import bpe_tokenizer, character_tokenizer, write_tokenizer
from irpo_megatron.config import RandomTokenizer
from irpo_megatron.errors import UserError
from irpo_megatron.records import Problem, read_rows
from irpo_megatron.requests import BaseModelRequest
from irpo_megatron.tasks import Task, load_task
from irpo_megatron.tasks.arithmetic import ALPHABET, PHRASES, ArithmeticTask


def run(request: BaseModelRequest) -> None:
    """Write a Hugging Face folder: configuration, weights and tokenizer.

    Raises:
        UserError: the task has no alphabet for a tokenizer of characters, or a BPE vocabulary is too small.
    """
    shape = request.model.random
    assert shape is not None, "this stage runs only where model.random is given"
    tokenizer = make_tokenizer(shape.tokenizer, load_task(request.task), request.problems)
    write_tokenizer(tokenizer, request.output, context=shape.context)
    write_random_llama(request.output, shape, vocabulary=tokenizer.get_vocab_size(), seed=request.seed)


def make_tokenizer(settings: RandomTokenizer, task: Task, problems: Path) -> Tokenizer:
    """The tokenizer that the configuration describes; BPE learns from the prompts and gold completions to train on.

    Raises:
        UserError: the task has no alphabet, or the vocabulary is too small.
    """
    if settings.kind == "bpe":
        return bpe_tokenizer(training_texts(task, problems), settings.vocabulary)
    if not isinstance(task, ArithmeticTask):
        raise UserError(
            f"model.random.tokenizer.kind = characters, task = {task.name}",
            f"only the task {ArithmeticTask.name} is written in a small alphabet",
            "set model.random.tokenizer.kind=bpe",
        )
    return character_tokenizer(ALPHABET, PHRASES)


def training_texts(task: Task, problems: Path) -> list[str]:
    """Prompt and gold completion of every training problem."""
    texts = []
    for problem in read_rows(problems / "train.parquet", Problem):
        texts += [task.prompt(problem), task.gold_completion(problem) or ""]
    return texts
