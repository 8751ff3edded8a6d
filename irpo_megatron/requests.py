"""What each stage reads: its part of the configuration and its inputs, as one typed request.

The loop fills a request from the configuration by the names of its fields, hands it to the stage's process as a JSON
file, and records it in the stage's manifest. A stage sees nothing else, so the manifest cannot miss a dependency.

Three stages read samples of their own: what these are follows from the request (`sampling`), and workers, which may run
elsewhere, draw them first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from irpo_megatron.artifacts import Json, flatten, step_of
from irpo_megatron.config import (
    Config,
    ConversionConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    Method,
    ModelConfig,
    PairsConfig,
    ParallelConfig,
    PrecisionConfig,
    ScoringConfig,
    SelectionConfig,
    TrackingConfig,
    TrainingConfig,
    is_neutral,
)
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.config_launch import LaunchConfig
from irpo_megatron.config_section import NonNegativeFloat, PositiveInt, Section


class SamplingJob(Section):
    """Completions of a list of problems by one model, in shards `<prefix>-00000.parquet`, ... of `Sample` rows."""

    directory: Path = Path(".")
    """Where the shards go, below the stage's partial directory."""
    prefix: str
    model_folder: Path
    """Hugging Face folder."""
    problems: tuple[Path, ...]
    """Files of `Problem` rows, one after the other."""
    draw: PositiveInt | None = None
    """Of the first file take only so many problems, drawn by the seed and the iteration."""
    temperature: NonNegativeFloat
    """0 is greedy decoding."""
    samples: PositiveInt
    """Completions a problem."""
    seed_names: tuple[str | int, ...]
    """Sample i of a problem has the seed `derive_seed(seed, *seed_names, problem.id, i)`."""
    guarded: bool = False
    """Whether the limits on useless samples (`generation.max_..._share`) hold for these, which are drawn."""


class Request(Section):
    """Where a stage works and which iteration it serves.

    A field named as in `Config` is configuration; any other is an input, a path or a value that the loop hands it.
    """

    output: Path
    """The stage's partial directory, where it writes (trackers and the report write into the run directory)."""
    iteration: int
    """1-based; 0 is the base model."""

    @property
    def python(self) -> Path | None:
        """The interpreter of the stage's process, None for the driver's; what needs the engine may have another."""
        return None

    @classmethod
    def config_values(cls, config: Config) -> dict[str, Any]:
        """The fields of this request that are keys or sections of the configuration."""
        return {name: getattr(config, name) for name in cls.model_fields if name in Config.model_fields}

    @classmethod
    def recorded_config(cls, config: Config) -> Json:
        """Those fields as the manifest records them: without the keys that cannot change the result."""
        dumped = config.model_dump(mode="json", include=set(cls.config_values(config)))
        return {key: value for key, value in flatten(dumped).items() if not is_neutral(key)}


class ProblemsRequest(Request):
    """Load, check and split the problems: `train.parquet`, `held_out.parquet`, `test.parquet` of `Problem` rows."""

    seed: int
    task: str
    data: DataConfig
    selection: SelectionConfig


class BaseModelRequest(Request):
    """Make a small model with random weights: a Hugging Face folder."""

    seed: int
    task: str
    model: ModelConfig
    problems: Path
    """Committed `problems/`; a BPE vocabulary is learned from its training texts."""


class WorkerRequest(Request):
    """Sample what a stage needs, beside other workers: the request is the same for all of them."""

    seed: int
    task: str
    generation: GenerationConfig
    launch: LaunchConfig
    jobs: tuple[SamplingJob, ...]
    """In the order in which they are taken up."""

    @property
    def python(self) -> Path | None:
        return self.generation.python

    @classmethod
    def of(cls, stage: GenerateRequest | EvaluateRequest | JudgeRequest) -> WorkerRequest:
        """The request to the workers of a stage."""
        return cls(
            output=stage.output,
            iteration=stage.iteration,
            seed=stage.seed,
            task=stage.task,
            generation=stage.generation,
            launch=stage.launch,
            jobs=stage.sampling(),
        )


class GenerateRequest(Request):
    """Sample N completions a prompt from M_{t-1}: shards of `Sample` rows, and `guard.json`."""

    seed: int
    task: str
    data: DataConfig
    generation: GenerationConfig
    selection: SelectionConfig
    launch: LaunchConfig
    problems: Path
    model_folder: Path
    """Hugging Face folder of M_{t-1}, as the engine loads it."""

    def sampling(self) -> tuple[SamplingJob, ...]:
        """The iteration's training problems, then the held-out ones where a retraining is to use them too."""
        names = ("train", "held_out") if self.selection.retrain else ("train",)
        return (
            SamplingJob(
                prefix="generations",
                model_folder=self.model_folder,
                problems=tuple(self.problems / f"{name}.parquet" for name in names),
                draw=self.data.problems_per_iteration,
                temperature=self.generation.temperature_at(self.iteration),
                samples=self.generation.samples,
                seed_names=("sample", self.iteration),
                guarded=True,
            ),
        )


class ScoreRequest(Request):
    """Judge every sample: shards of `Score` rows, named as the shards of `Sample` rows."""

    task: str
    scoring: ScoringConfig
    problems: Path
    generations: Path


class PairsRequest(Request):
    """Build the pairs of an iteration: `pairs.parquet` of `Pair` rows, and `counts.json`."""

    seed: int
    task: str
    method: Method
    pairs: PairsConfig
    selection: SelectionConfig
    problems: Path
    generations: Path | None
    """None for method `sft`, which samples nothing."""
    scores: Path | None
    model_folder: Path
    """Hugging Face folder of M_{t-1}, for its tokenizer and its context length."""


class ReferenceRequest(Request):
    """log p_ref of every unique (prompt, completion) row of the pairs: shards of `ReferenceLogProb` rows."""

    training: TrainingConfig
    precision: PrecisionConfig
    parallel: ParallelConfig
    launch: LaunchConfig
    pair_rows: Path
    checkpoint: Path
    """Megatron checkpoint of M_{t-1}, the reference."""


class TrainRequest(Request):
    """Train M_t from M_{t-1}: Megatron checkpoints under `checkpoints/`, and `metrics.jsonl`."""

    seed: int
    method: Method
    loss: LossConfig
    training: TrainingConfig
    precision: PrecisionConfig
    selection: SelectionConfig
    parallel: ParallelConfig
    tracking: TrackingConfig
    launch: LaunchConfig
    pair_rows: Path
    reference: Path | None
    """None for the methods without a DPO term."""
    checkpoint: Path
    """Megatron checkpoint of M_{t-1}."""
    run_dir: Path
    """Trackers write there."""
    retrain_steps: int | None = None
    """None: train without the held-out problems, save every candidate. A number: train with them for so many steps."""


class ImportRequest(Request):
    """Convert M_0 from Hugging Face to Megatron: a Megatron checkpoint."""

    parallel: ParallelConfig
    launch: LaunchConfig
    model_folder: Path


class ExportRequest(Request):
    """Convert Megatron checkpoints to Hugging Face folders."""

    conversion: ConversionConfig
    launch: LaunchConfig
    checkpoints: dict[str, Path]
    """Name of the folder to write below `output` (`.` is `output` itself) -> Megatron checkpoint."""
    model_folder: Path
    """The Hugging Face folder of M_0: config.json, generation config and tokenizer are carried over from it."""


class QuantiseRequest(Request):
    """Write FP8 copies of Hugging Face folders, which TensorRT-LLM loads instead of them."""

    seed: int
    task: str
    generation: GenerationConfig
    launch: LaunchConfig
    problems: Path
    models: dict[str, Path]
    """Name of the folder to write below `output` (`.` is `output` itself) -> Hugging Face folder."""

    @property
    def python(self) -> Path | None:
        return self.generation.python


class JudgeRequest(Request):
    """Greedy accuracy of every candidate on the held-out problems: `selection.json` names the best."""

    seed: int
    task: str
    generation: GenerationConfig
    scoring: ScoringConfig
    launch: LaunchConfig
    problems: Path
    candidates: dict[str, Path]
    """Name of a candidate (`step-000025`) -> its Hugging Face folder, as the engine loads it."""

    def sampling(self) -> tuple[SamplingJob, ...]:
        """Each candidate's greedy answers to the held-out problems, in a folder of its own."""
        return tuple(
            SamplingJob(
                directory=Path("judged") / name,
                prefix="greedy",
                model_folder=self.candidates[name],
                problems=(self.problems / "held_out.parquet",),
                temperature=0,
                samples=1,
                seed_names=("evaluate", self.iteration),
            )
            for name in sorted(self.candidates, key=step_of)
        )


class EvaluateRequest(Request):
    """Greedy accuracy, maj@k and pass@k on the test problems: `results.json`, and the samples behind it."""

    seed: int
    task: str
    generation: GenerationConfig
    scoring: ScoringConfig
    evaluation: EvaluationConfig
    launch: LaunchConfig
    problems: Path
    model_folder: Path

    def sampling(self) -> tuple[SamplingJob, ...]:
        """One greedy answer to each test problem, and where maj@k is asked for k sampled ones."""
        how = [("greedy", 0.0, 1), ("samples", self.evaluation.temperature, self.evaluation.samples)]
        return tuple(
            SamplingJob(
                prefix=prefix,
                model_folder=self.model_folder,
                problems=(self.problems / "test.parquet",),
                temperature=temperature,
                samples=samples,
                seed_names=("evaluate", self.iteration),
            )
            for prefix, temperature, samples in how
            if samples > 0
        )


class ReportRequest(Request):
    """`results.json`, `metrics.jsonl` and `report.html` of a run; `output` is the run directory itself."""
