"""What `irpo plan` predicts against what training does, on a CPU: the tables of docs/planning.md.

    .venv/bin/python -m benchmarks.planning

The training stage itself trains a random Llama of 58 million parameters on pairs as long as GSM8K's, at each layout, on
as many Gloo processes as the layout asks for, one thread each. Memory is the highest of the rank that has most, without
what the same process has with a model of next to nothing: imports, and what libraries hold once they are used. Freed
tensors go back to the system at once (`MALLOC_MMAP_THRESHOLD_`): the prediction is of what the program holds, not of
what its allocator keeps. Time is that of a run of its own, with the allocator as it is by default: the fastest of the
steps after the first. Other work on the machine lengthens it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.training_bench.flops import best_product
from benchmarks.training_bench.inputs import Inputs
from benchmarks.training_bench.random_pairs import random_inputs
from benchmarks.training_bench.stages import base_request, with_training
from benchmarks.training_bench.worker import ROOT
from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.base_model.random_llama import llama_config
from irpo_megatron.config import Config, DataConfig, ModelConfig, ParallelConfig, RandomModel, RandomTokenizer
from irpo_megatron.planning.batches import Lengths
from irpo_megatron.planning.hardware import DEVICES
from irpo_megatron.planning.layouts import Layout, Problem, evaluate
from irpo_megatron.planning.shape import read_shape
from irpo_megatron.requests import TrainRequest

MIB = 2**20
PAIRS = 16  # one global batch, the same in each step
VOCABULARY = 32_000
_TOKENIZER = RandomTokenizer(kind="characters")
MODEL = RandomModel(tokenizer=_TOKENIZER, hidden_size=512, layers=8, heads=8, kv_heads=8, ffn_size=1408, context=1024)
NOTHING = RandomModel(tokenizer=_TOKENIZER, hidden_size=16, layers=8, heads=8, kv_heads=8, ffn_size=16, context=1024)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layout with its batching."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    dtype: str = "fp32"
    training: dict[str, Any]


CASES = {
    "one process": Case(training={"micro_batch_tokens": 4096}),
    "micro-batches of 1,024 tokens": Case(training={"micro_batch_tokens": 1024}),
    "recompute selective": Case(training={"micro_batch_tokens": 4096, "recompute": "selective"}),
    "recompute full": Case(training={"micro_batch_tokens": 4096, "recompute": "full"}),
    "bf16": Case(dtype="bf16", training={"micro_batch_tokens": 4096}),
    "TP2": Case(parallel=ParallelConfig(tensor=2), training={"micro_batch_tokens": 4096}),
    "TP2 with SP": Case(parallel=ParallelConfig(tensor=2, sequence=True), training={"micro_batch_tokens": 4096}),
    "PP2": Case(parallel=ParallelConfig(pipeline=2), training={"micro_batch_tokens": 2048}),
    "DP2": Case(parallel=ParallelConfig(data=2), training={"micro_batch_tokens": 4096}),
    "CP2": Case(parallel=ParallelConfig(context=2), training={"micro_batch_tokens": 4096}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps, of which the first is not timed")
    arguments = parser.parse_args()
    flops = best_product(MODEL, VOCABULARY, threads=1)
    print(f"fastest product on one thread: {flops / 1e9:.0f} GFLOP/s\n")
    print("| layout | peak, MiB | predicted | off by | step, s | predicted | off by |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        models = {name: Prepared(Path(folder) / name, shape) for name, shape in (("model", MODEL), ("none", NOTHING))}
        without: dict[tuple[int, str], float] = {}
        for name in arguments.cases:
            case = CASES[name]
            like = (case.parallel.world_size, case.dtype)
            if like not in without:
                without[like] = models["none"].peak_mib(case)
            peak = models["model"].peak_mib(case) - without[like]
            seconds = models["model"].step_seconds(case, steps=arguments.steps)
            layout = models["model"].predict(case, flops)
            predicted = layout.memory.total / MIB
            print(
                f"| {name} | {peak:,.0f} | {predicted:,.0f} | {predicted / peak - 1:+.0%} "
                f"| {seconds:.1f} | {layout.step.total:.1f} | {layout.step.total / seconds - 1:+.0%} |",
                flush=True,
            )


class Prepared:
    """A model and pairs, imported, with their reference log-probs."""

    def __init__(self, folder: Path, shape: RandomModel) -> None:
        draw = random.Random(0)
        lengths = [(draw.randrange(60, 160), draw.randrange(60, 180), draw.randrange(60, 180)) for _ in range(PAIRS)]
        folder.mkdir()
        self._vocabulary = VOCABULARY if shape is MODEL else 64
        self._inputs: Inputs = random_inputs(folder, shape, vocabulary=self._vocabulary, lengths=lengths)
        self._lengths = lengths
        self._folder = folder
        self._requests: dict[str, TrainRequest] = {}

    def peak_mib(self, case: Case) -> float:
        """The highest memory of the rank that has most."""
        return max(rank["peak_mib"] for rank in self._train(case, steps=2, MALLOC_MMAP_THRESHOLD_="262144"))

    def step_seconds(self, case: Case, *, steps: int) -> float:
        """The fastest of the steps after the first."""
        ranks = self._train(case, steps=steps)
        return min(max(times) for times in zip(*(rank["seconds"][1:] for rank in ranks), strict=True))

    def _train(self, case: Case, *, steps: int, **environment: str) -> list[dict[str, Any]]:
        """What each rank says of its memory and its steps."""
        if case.dtype not in self._requests:
            self._requests[case.dtype] = base_request(
                self._inputs, self._folder / case.dtype, threads=1, dtype=case.dtype, training={}
            )
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        changes = {**case.training, "max_steps": steps, "global_batch_size": PAIRS}
        request = with_training(self._requests[case.dtype], folder / "training", changes)
        path = folder / "request.json"
        write_json(path, request.model_copy(update={"parallel": case.parallel}).model_dump(mode="json"))
        processes = case.parallel.world_size
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
                *("-m", "benchmarks.training_bench.measured_rank", str(path)),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{case} failed:\n{done.stdout[-4000:]}")
        return [read_json(folder / f"rank-{rank}.json") for rank in range(processes)]

    def predict(self, case: Case, flops: float) -> Layout:
        """What the planner says, with the lengths of these pairs."""
        prompts = [prompt for prompt, _, _ in self._lengths]
        completions = [length for _, *both in self._lengths for length in both]
        config = llama_config(self._inputs.shape, self._vocabulary)
        problem = Problem(
            model=config,
            shape=read_shape(config),
            lengths=Lengths(
                prompt=statistics.mean(prompts),
                completion=statistics.mean(completions),
                longest_prompt=max(prompts),
                longest_completion=max(completions),
            ),
            device=replace(DEVICES["cpu"], flops={"fp32": flops, "bf16": flops}),
        )
        return evaluate(
            problem,
            Config(
                name="bench",
                task="gsm8k",
                model=ModelConfig(path=self._inputs.model_folder),
                data=DataConfig(train="unused", test="unused"),
                training={"global_batch_size": PAIRS, **case.training},
                precision={"dtype": case.dtype},
                parallel=case.parallel,
            ),
        )


if __name__ == "__main__":
    main()
