"""Training of this project against TRL's DPOTrainer, on one machine, in one run: the figures of docs/performance.md.

    make bench DATA=path/to/gsm8k/train.jsonl

Both sides train the same random Llama on the same pairs of GSM8K solutions: sigmoid DPO plus NLL of the chosen one,
AdamW, 16 pairs a step, reference log-probs computed beforehand. Each lives in a process of its own and computes only
when it is asked to: a few steps here, the same steps there, and again. Then what makes this side fast is switched off,
one thing at a time, in the same way.

A CUDA GPU is used where there is one, in bf16 (TRL: autocast over fp32 weights, its default); a CPU computes in fp32.

Useful tokens are those of the prompts, each once, and of both completions; padding, and a prompt computed a second
time, are work that nobody wants.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.training_bench.flops import best_product, useful_flops
from benchmarks.training_bench.inputs import SIZES, VOCABULARY, Inputs, make_inputs
from benchmarks.training_bench.report import Work, figures_of, print_table, require_agreement
from benchmarks.training_bench.stages import base_request, with_training
from benchmarks.training_bench.worker import ROOT, Worker
from irpo_megatron.artifacts import write_json
from irpo_megatron.requests import TrainRequest

ON_CUDA = torch.cuda.is_available()
OURS = "this project"
TRL_VENV = ROOT / ".venv-trl"
# The newest TRL, and the last one before its fused output layer: that is written for GPUs, and slower on a CPU. Pairs a
# micro-batch: on two cores 1 was fastest of 1, 2, 4, 8 and 16, in both; on a GPU the run itself shows it.
TRL = [("1.16.0", 4), ("1.16.0", 8), ("1.16.0", 16)] if ON_CUDA else [("1.16.0", 1), ("1.13.0", 1)]
# What is switched off, one at a time, and how. No chunks: so many MiB that the logits of all completion tokens of a
# micro-batch are made at once, and kept for the backward pass instead of being made again.
VARIANTS: dict[str, dict[str, Any]] = {
    "no packing, micro-batch 4": {"micro_batch_size": 4},
    "no shared prompt": {"shared_prompt": False},
    "no chunks of logits": {"log_prob_mib": 1_000_000},
}
VARIANTS["none of the three"] = {key: value for off in VARIANTS.values() for key, value in off.items()}


def main() -> None:
    arguments = parse_arguments()
    folder: Path = arguments.runs.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Of its own, so that two runs at once do not meet.
    with tempfile.TemporaryDirectory(prefix="work-", dir=folder, ignore_cleanup_errors=True) as work:
        run(arguments, folder, Path(work))


def run(arguments: argparse.Namespace, folder: Path, work: Path) -> None:
    """Make the inputs, compare, write the figures to `folder`."""
    console = Console(width=max(120, Console().width))
    inputs = make_inputs(work, arguments.data, size=arguments.size, pairs=arguments.batch * arguments.segment_steps)
    console.print(
        f"{len(inputs.pairs)} pairs a segment. Mean tokens: {inputs.question_tokens:.0f} a question, "
        f"{inputs.solution_tokens:.0f} a solution, {inputs.useful_tokens / len(inputs.pairs):.0f} a pair."
    )
    request = base_request(
        inputs,
        work,
        threads=arguments.threads,
        dtype="bf16" if ON_CUDA else "fp32",
        training={"global_batch_size": arguments.batch, "micro_batch_tokens": arguments.micro_tokens},
    )
    bench = Bench(arguments, inputs, request, work)
    if arguments.profile:
        with bench.ours(OURS) as worker:
            print(worker.ask(profile=arguments.profile)["table"])
        return

    results: dict[str, Any] = {"machine": machine(), "arguments": {k: str(v) for k, v in vars(arguments).items()}}
    if "trl" in arguments.parts:
        trl = {f"TRL {version}, micro-batch {micro}": (version, micro) for version, micro in arguments.trl}
        starts = {OURS: bench.ours} | {name: partial(bench.trl, version=v, micro=m) for name, (v, m) in trl.items()}
        results["trl"] = bench.compare(console, "Against TRL", starts, trl={name: trl[name][1] for name in trl})
    if "variants" in arguments.parts:
        starts = {OURS: bench.ours} | {name: partial(bench.ours, **off) for name, off in VARIANTS.items()}
        results["variants"] = bench.compare(console, "What each part is worth", starts)
    path = folder / f"training-{time.strftime('%Y%m%d-%H%M%S')}.json"
    write_json(path, results)
    console.print(f"All figures: {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl of GSM8K")
    parser.add_argument("--size", choices=SIZES, default="1b" if ON_CUDA else "60m", help="of the model")
    parser.add_argument("--parts", nargs="+", choices=("trl", "variants"), default=["trl", "variants"])
    parser.add_argument("--rounds", type=int, default=4, help="how often the sides take turns")
    parser.add_argument("--segment-steps", type=int, default=2, help="optimizer steps a turn")
    parser.add_argument("--batch", type=int, default=16, help="pairs an optimizer step")
    micro_tokens = 16384 if ON_CUDA else 1024
    parser.add_argument("--micro-tokens", type=int, default=micro_tokens, help="training.micro_batch_tokens, this side")
    parser.add_argument("--trl", type=version_and_micro, nargs="+", default=TRL, help="VERSION:PAIRS a micro-batch")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--peak-tflops", type=float, help="nominal peak of a GPU, for MFU; else as measured here")
    parser.add_argument("--profile", type=int, nargs="?", const=20, metavar="ROWS", help="only this side's operators")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench", help="where files go")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        parser.error(f"--data {arguments.data} is no file: give GSM8K's train.jsonl (make bench DATA=path)")
    if any(arguments.batch % micro for _, micro in arguments.trl):
        parser.error(f"--trl: the pairs of a micro-batch must divide the {arguments.batch} pairs of a step")
    return arguments


def version_and_micro(text: str) -> tuple[str, int]:
    version, _, micro = text.partition(":")
    return version, int(micro)


class Bench:
    """Starts workers on the inputs, and has them take turns."""

    def __init__(self, arguments: argparse.Namespace, inputs: Inputs, request: TrainRequest, folder: Path) -> None:
        self._arguments = arguments
        self._inputs = inputs
        self._request = request
        self._folder = folder
        self._flops = useful_flops(inputs.shape, VOCABULARY, inputs.pairs)
        self._products: list[float] = []

    def ours(self, name: str, **off: Any) -> Worker:
        """A worker of this project, with everything on or something off."""
        request = with_training(self._request, self._folder / "training" / str(len(off)), off)
        settings = {"threads": self._arguments.threads, "request": request.model_dump(mode="json")}
        return Worker(name, Path(sys.executable), "ours", settings, self._folder)

    def trl(self, name: str, *, version: str, micro: int) -> Worker:
        """A worker of a version of TRL with so many pairs a micro-batch."""
        training, loss = self._request.training, self._request.loss
        same = ("global_batch_size", "learning_rate", "weight_decay", "clip_gradient")
        adam = ("adam_beta1", "adam_beta2", "adam_epsilon")
        settings = {
            "threads": self._arguments.threads,
            "model": str(self._inputs.model_folder),
            "pairs": str(self._inputs.pair_rows / "pairs.parquet"),
            "output": str(self._folder / "trl"),
            "max_length": self._inputs.shape.context,
            "micro": micro,
            **loss.model_dump(),
            **training.model_dump(include={*same, *adam}),
        }
        python, other_version = TRL_VENV / "bin" / "python", TRL_VENV / f"trl-{version}"
        worker = Worker(name, python, "trl_side", settings, self._folder, first_on_path=other_version)
        assert worker.ready["versions"]["trl"] == version, f"{python} has no TRL {version}: {worker.ready['versions']}"
        return worker

    def compare(
        self,
        console: Console,
        title: str,
        starts: dict[str, Callable[[str], Worker]],
        *,
        trl: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Start all sides, one after the other; let them take turns; print a table of what came out.

        Args:
            starts: Name of a side -> what starts its worker.
            trl: Pairs a micro-batch of those that are TRL: their first step is compared with this project's, and
                ratios are taken to the fastest of them; to this project with everything on where there is none.
        """
        segments: dict[str, list[dict[str, Any]]] = {name: [] for name in starts}
        with contextlib.ExitStack() as stack:
            workers = {}
            for name, start in starts.items():
                console.print(f"starting: {name}")
                workers[name] = stack.enter_context(start(name))
            first_steps = {name: worker.ready["first_step"] for name, worker in workers.items()}
            agreement = {
                name: require_agreement(first_steps[OURS], first_steps[name], trl_micro=micro, on_cuda=ON_CUDA)
                for name, micro in (trl or {}).items()
            }
            for count in range(self._arguments.rounds):
                self._products.append(best_product(self._inputs.shape, VOCABULARY, threads=self._arguments.threads))
                for name, worker in workers.items():
                    segments[name].append(worker.ask(run=self._arguments.segment_steps))
                said = ", ".join(f"{name} {segments[name][-1]['seconds']:.1f} s" for name in starts)
                console.print(f"round {count + 1} of {self._arguments.rounds}: {said}")
        against = min(trl or [OURS], key=lambda name: sum(segment["seconds"] for segment in segments[name]))
        work = self._work()
        figures = {name: figures_of(segments[name], segments[against], work) for name in starts}
        print_table(console, title, against, figures, work)
        return {
            "ratios_are_to": against,
            "sides": figures,
            "segments": segments,
            "started": {name: worker.ready for name, worker in workers.items()},
            "agreement": agreement,
            "work": vars(work),
        }

    def _work(self) -> Work:
        nominal = self._arguments.peak_tflops
        return Work(
            pairs=len(self._inputs.pairs),
            useful_tokens=self._inputs.useful_tokens,
            useful_flops=self._flops,
            peak_flops=nominal * 1e12 if nominal else max(self._products),
            peak_is="nominal peak" if nominal else "product peak",
        )


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": cpu.partition(":")[2].strip(),
        "gpu": torch.cuda.get_device_name() if ON_CUDA else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
