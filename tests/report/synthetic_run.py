"""A run directory made by hand, with numbers that the tests know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from irpo_megatron.artifacts import write_json
from irpo_megatron.config import Config
from irpo_megatron.records import Pair, Problem, ReferenceLogProb, Sample, Score, write_rows

METHOD_STAGES = {
    "irpo": ("generations", "scores", "pairs", "reference", "training", "selection", "checkpoint-hf", "evaluation"),
    "star": ("generations", "scores", "pairs", "training", "selection", "checkpoint-hf", "evaluation"),
    "sft": ("pairs", "training", "selection", "checkpoint-hf", "evaluation"),
}

ACCURACY = (0.5, 0.65, 0.8, 0.9, 0.95)
COUNTS = {
    "problems": 100,
    "problems_all_right": 20,
    "problems_all_wrong": 10,
    "samples": 1600,
    "samples_truncated": 12,
    "samples_empty": 3,
    "winners": 800,
    "winners_distinct": 300,
    "losers": 800,
    "losers_distinct": 400,
    "gold_winners": 0,
    "pairs_too_long": 5,
    "pairs_identical": 1,
    "pairs_over_limit": 2,
    "pairs": 272,
    "pairs_held_out": 16,
}


class RunBuilder:
    """Writes stage directories as the stages do, manifests included."""

    def __init__(self, root: Path, *, task: str = "arithmetic", method: str = "irpo", **config: Any) -> None:
        self.directory = root / "demo"
        self.directory.mkdir(parents=True)
        self.method = method
        values = {
            "name": "demo",
            "task": task,
            "method": method,
            "iterations": 2,
            "model": {"random": {"tokenizer": {"kind": "characters"}}},
            "data": {"train": "generate:100", "test": "generate:100"},
            **config,
        }
        self.config = Config.model_validate(values)
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        (self.directory / "config.yaml").write_text(text, encoding="utf-8")
        self.completion = "3+4=7\nFinal answer: H"
        self.slower = 0.0

    def stage(self, iteration: int | None, name: str, seconds: float = 1.5) -> Path:
        """A committed, empty stage directory."""
        parent = self.directory if iteration is None else self.directory / f"iteration-{iteration:02d}"
        directory = parent / name
        directory.mkdir(parents=True)
        write_json(
            directory / "manifest.json",
            {
                "stage": name,
                "config": {},
                "inputs": {},
                "outputs": {},
                "seconds": seconds + (iteration or 0) + self.slower,
            },
        )
        return directory

    def preparation(self) -> None:
        write_json(self.directory / "environment.json", {"python": "3.11.2", "packages": {"torch": "2.5.1"}, "cpus": 2})
        directory = self.stage(None, "problems")
        for split in ("train", "test"):
            rows = [Problem(id=f"{split}-{i:06d}", question="3+4", answer="H") for i in range(30)]
            write_rows(directory / f"{split}.parquet", rows, Problem)
        self.stage(None, "base-model")

    def samples(self, split: str, problems: int, samples: int) -> list[Sample]:
        return [
            Sample(
                prompt_id=f"{split}-{problem:06d}",
                sample_index=index,
                seed=0,
                prompt=f"Question: {problem}+4\nSolution:",
                prompt_ids=(1, 2),
                completion=self.completion,
                completion_ids=(3, 4, 5),
                finish_reason="length" if (problem + index) % 7 == 6 else "stop",
            )
            for problem in range(problems)
            for index in range(samples)
        ]

    @staticmethod
    def scores(samples: list[Sample]) -> list[Score]:
        answers = ("H", "L", None)
        return [
            Score(
                prompt_id=s.prompt_id,
                sample_index=s.sample_index,
                answer=answers[(int(s.prompt_id[-6:]) + s.sample_index) % 3],
                correct=(int(s.prompt_id[-6:]) + s.sample_index) % 3 == 0,
            )
            for s in samples
        ]

    def evaluation(self, iteration: int, **changes: Any) -> None:
        accuracy = ACCURACY[iteration]
        directory = self.stage(iteration, "evaluation")
        results = {
            "problems": 100,
            "accuracy": accuracy,
            "interval": [accuracy - 0.08, accuracy + 0.04],
            "majority": {"k": 8, "accuracy": accuracy + 0.03, "interval": [accuracy - 0.05, accuracy + 0.05]},
            "pass_at": {"1": accuracy - 0.1, "8": 0.99},
            "tokens": 1234,
            "truncated_share": 0.01,
            "unparsable_share": 0.02,
            "ungraded": 3,
        }
        write_json(directory / "results.json", results | changes)
        greedy = self.samples("test", 25, 1)
        write_rows(directory / "greedy-00000.parquet", greedy[:10], Sample)
        write_rows(directory / "greedy-00001.parquet", greedy[10:], Sample)
        write_rows(directory / "greedy_scores.parquet", self.scores(greedy), Score)

    def sampling(self, iteration: int) -> None:
        directory = self.stage(iteration, "generations")
        samples = self.samples("train", 24, 6)
        write_rows(directory / "shard-00000.parquet", samples[:60], Sample)
        write_rows(directory / "shard-00001.parquet", samples[60:], Sample)

    def scoring(self, iteration: int) -> None:
        directory = self.stage(iteration, "scores")
        samples = self.samples("train", 24, 6)
        write_json(directory / "counts.json", {"samples": 144, "correct": 48, "without_answer": 48, "ungraded": 7})
        write_rows(directory / "shard-00000.parquet", self.scores(samples[:60]), Score)
        write_rows(directory / "shard-00001.parquet", self.scores(samples[60:]), Score)

    def pairs(self, iteration: int) -> None:
        directory = self.stage(iteration, "pairs")
        write_json(directory / "counts.json", COUNTS)
        rows = [
            Pair(
                pair_id=f"train-000000-{k}",
                prompt_id="train-000000",
                prompt="p",
                chosen="c",
                rejected="r",
                prompt_ids=(1,),
                chosen_ids=(2,),
                rejected_ids=(3,),
                chosen_sample=0,
                rejected_sample=1 + k,
                held_out=False,
            )
            for k in range(2)
        ]
        write_rows(directory / "pairs.parquet", rows, Pair)

    def reference(self, iteration: int) -> None:
        directory = self.stage(iteration, "reference")
        rows = [ReferenceLogProb(row_id=str(i), log_prob=-1.0, tokens=10) for i in range(5)]
        write_rows(directory / "shard-00000.parquet", rows, ReferenceLogProb)

    def training(self, iteration: int, steps: int = 20) -> None:
        directory = self.stage(iteration, "training")
        has_dpo = self.method == "irpo"
        with (directory / "metrics.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                row = {
                    "iteration": iteration,
                    "step": step,
                    "loss": 1.0 - step / 100,
                    "dpo": 0.69 - step / 100 if has_dpo else None,
                    "nll": 0.3,
                    "chosen_log_prob": -2.0 - step / 10,
                    "rejected_log_prob": -3.0 - step / 5 if has_dpo else None,
                    "margin": step / 10 if has_dpo else None,
                    "accuracy": 0.75 if has_dpo else None,
                    "gradient_norm": 1.0,
                    "learning_rate": 1e-4,
                    "pairs": 16,
                    "tokens": 100,
                    "tokens_per_second": 50.0,
                    "seconds": 2.0,
                }
                file.write(json.dumps(row) + "\n")

    def selection(self, iteration: int) -> None:
        directory = self.stage(iteration, "selection")
        candidates = [
            {
                "name": f"step-{step:06d}",
                "step": step,
                "accuracy": share,
                "interval": [share - 0.1, share + 0.1],
                "problems": 50,
            }
            for step, share in ((10, 0.70), (20, 0.72), (15, 0.74))
        ]
        write_json(directory / "selection.json", {"step": 15, "candidates": candidates})

    def iteration(self, number: int, *, up_to: str = "evaluation") -> None:
        """An iteration whose last committed stage is `up_to`."""
        makers: dict[str, Callable[[int], object]] = {
            "generations": self.sampling,
            "scores": self.scoring,
            "pairs": self.pairs,
            "reference": self.reference,
            "training": self.training,
            "selection": self.selection,
            "checkpoint-hf": lambda number: self.stage(number, "checkpoint-hf"),
            "evaluation": self.evaluation,
        }
        stages = METHOD_STAGES[self.method]
        for name in stages[: stages.index(up_to) + 1]:
            makers[name](number)

    def base(self) -> None:
        self.preparation()
        self.stage(0, "checkpoint-megatron")
        self.evaluation(0)
