"""Tokens a second of the backend `transformers` against transformers' own `generate`, alternated in one run.

    .venv/bin/python -m benchmarks.generation

N = 16 samples a prompt, by models of about 4 and 15 million parameters with random weights, on two threads. First the
number of prompts at once is found at which `generate` is fastest; then both take turns over the same prompts, each in a
process of its own.

Two kinds of samples: `even` ones all run to the longest completion, so that no row is ever idle; `random` ones end at
each token with a probability of 1/64, and `generate` waits for the longest of its batch. Only tokens of samples count.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM

from irpo_megatron.base_model.random_llama import write_random_llama
from irpo_megatron.config import RandomModel, RandomTokenizer
from irpo_megatron.config_generation import TransformersConfig
from irpo_megatron.generation.protocol import SampleRequest, SamplingSettings
from irpo_megatron.generation.transformers import TransformersGenerator
from irpo_megatron.seeds import derive_seed

THREADS, SAMPLES, PROMPT_TOKENS, VOCABULARY = 2, 16, 48, 1024
LONGEST = {"even": 64, "random": 128}
# So many of the vocabulary's tokens end a completion; the weights are random, so all tokens are about equally probable.
END_TOKENS = {"even": 0, "random": VOCABULARY // 64}
GENERATE_PROMPTS = (4, 8, 16, 32)
ROWS = 256
PROMPTS = 32
SHAPES = {
    "4M": RandomModel(
        tokenizer=RandomTokenizer(kind="characters"),
        hidden_size=256,
        layers=4,
        heads=8,
        kv_heads=8,
        ffn_size=688,
        context=512,
    ),
    "15M": RandomModel(
        tokenizer=RandomTokenizer(kind="characters"),
        hidden_size=384,
        layers=8,
        heads=8,
        kv_heads=8,
        ffn_size=1024,
        context=512,
    ),
}
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Case:
    """A line of the table."""

    size: str
    kind: str
    dtype: Literal["fp32", "bf16"]
    folder: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    spawn = multiprocessing.get_context("spawn")
    theirs, ours = (
        ProcessPoolExecutor(1, mp_context=spawn, initializer=torch.set_num_threads, initargs=(THREADS,))
        for _ in range(2)
    )
    print("model  dtype  samples  generate (prompts at once)     irpo-megatron    ratio of medians (each round)")
    with tempfile.TemporaryDirectory() as folder:
        for size, shape in SHAPES.items():
            for kind in LONGEST:
                model_folder = write_model(Path(folder) / f"{size}-{kind}", shape, END_TOKENS[kind])
                for dtype in ("fp32", "bf16"):
                    compare(theirs, ours, Case(size, kind, dtype, model_folder), rounds)


def write_model(folder: Path, shape: RandomModel, end_tokens: int) -> Path:
    """A model whose first tokens end a completion: `end_tokens` of them, or one that is no token of the vocabulary."""
    folder.mkdir()
    write_random_llama(folder, shape, vocabulary=VOCABULARY, seed=0)
    vocabulary = {"<eos>": 0} | {f"w{number}": number for number in range(1, VOCABULARY)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    ends = list(range(end_tokens)) or [VOCABULARY]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def compare(theirs: Executor, ours: Executor, case: Case, rounds: int) -> None:
    """Print a line of the table."""

    def generate_speed(at_once: int, prompts: int) -> float:
        return theirs.submit(generate, case, at_once, prompts).result()

    best = max(GENERATE_PROMPTS, key=lambda at_once: generate_speed(at_once, max(at_once, 8)))
    measured = [(generate_speed(best, PROMPTS), ours.submit(decode, case).result()) for _ in range(rounds)]
    peer, mine = (sorted(speeds) for speeds in zip(*measured, strict=True))
    print(
        f"{case.size:>4}   {case.dtype}   {case.kind:<7}"
        f"  {statistics.median(peer):6,.0f} ({peer[0]:,.0f}-{peer[-1]:,.0f}; {best})"
        f"   {statistics.median(mine):6,.0f} ({mine[0]:,.0f}-{mine[-1]:,.0f})"
        f"   {statistics.median(mine) / statistics.median(peer):.2f}"
        f" ({', '.join(f'{mine / peer:.2f}' for peer, mine in measured)})",
        flush=True,
    )


def draw_prompts(count: int) -> list[tuple[int, ...]]:
    """Prompts without a token that ends a completion."""
    draw = random.Random(0)
    return [tuple(draw.randrange(32, VOCABULARY) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def generate(case: Case, at_once: int, count: int) -> float:
    """Tokens a second of transformers' `generate`."""
    model, prompts = load_peer(case), draw_prompts(count)
    ends = list(range(END_TOKENS[case.kind])) or None
    tokens, started = 0, time.perf_counter()
    for start in range(0, count, at_once):
        ids = torch.tensor(prompts[start : start + at_once])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                num_return_sequences=SAMPLES,
                max_new_tokens=LONGEST[case.kind],
                eos_token_id=ends,
                pad_token_id=0,
            )
        ended = torch.isin(output[:, PROMPT_TOKENS:], torch.tensor(ends or [VOCABULARY]))
        tokens += int((ended.cumsum(dim=1) - ended.long() == 0).sum())
    return tokens / (time.perf_counter() - started)


def decode(case: Case) -> float:
    """Tokens a second of this project."""
    generator = load_ours(case)
    requests = [
        SampleRequest(prompt_ids=prompt, seed=derive_seed(0, "benchmark", number, sample))
        for number, prompt in enumerate(draw_prompts(PROMPTS))
        for sample in range(SAMPLES)
    ]
    settings = SamplingSettings(temperature=TEMPERATURE, top_p=1.0, max_tokens=LONGEST[case.kind])
    started = time.perf_counter()
    tokens = sum(len(completion.ids) for _, completion in generator.generate(requests, settings))
    return tokens / (time.perf_counter() - started)


@functools.cache
def load_peer(case: Case) -> Any:
    """The model, in the process that calls this."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[case.dtype]
    return AutoModelForCausalLM.from_pretrained(case.folder, dtype=dtype).eval()


@functools.cache
def load_ours(case: Case) -> TransformersGenerator:
    """The backend, in the process that calls this, once its kernels are compiled."""
    generator = TransformersGenerator(case.folder, batch_size=ROWS, settings=TransformersConfig(dtype=case.dtype))
    settings = SamplingSettings(temperature=TEMPERATURE, top_p=1.0, max_tokens=2)
    list(generator.generate([SampleRequest(prompt_ids=draw_prompts(1)[0], seed=0)], settings))
    return generator


if __name__ == "__main__":
    main()
