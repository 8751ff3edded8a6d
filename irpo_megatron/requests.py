"""What each stage reads: its part of the configuration and its inputs, as one typed request.

The loop fills a request from the configuration by the names of its fields, hands it to the stage's process as a JSON
file, and records it in the stage's manifest. A stage sees nothing else, so the manifest cannot miss a dependency.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from irpo_megatron.artifacts import Json, flatten
from irpo_megatron.config import (
    RESULT_NEUTRAL,
    Config,
    ConversionConfig,
    DataConfig,
    EvaluationConfig,
    LaunchConfig,
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
)
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.config_section import Section


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
        """The interpreter of the stage's process, None for the driver's; those that sample may have their own."""
        generation: GenerationConfig | None = getattr(self, "generation", None)
        return None if generation is None else generation.python

    @classmethod
    def config_values(cls, config: Config) -> dict[str, Any]:
        """The fields of this request that are keys or sections of the configuration."""
        return {name: getattr(config, name) for name in cls.model_fields if name in Config.model_fields}

    @classmethod
    def recorded_config(cls, config: Config) -> Json:
        """Those fields as the manifest records them: without the keys that cannot change the result."""
        dumped = config.model_dump(mode="json", include=set(cls.config_values(config)))
        return {key: value for key, value in flatten(dumped).items() if key not in RESULT_NEUTRAL}


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


class GenerateRequest(Request):
    """Sample N completions a prompt from M_{t-1}: shards of `Sample` rows."""

    seed: int
    task: str
    data: DataConfig
    generation: GenerationConfig
    selection: SelectionConfig
    launch: LaunchConfig
    problems: Path
    model_folder: Path
    """Hugging Face folder of M_{t-1}."""


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


class JudgeRequest(Request):
    """Greedy accuracy of every candidate on the held-out problems: `selection.json` names the best."""

    seed: int
    task: str
    generation: GenerationConfig
    scoring: ScoringConfig
    launch: LaunchConfig
    problems: Path
    candidates: dict[str, Path]
    """Name of a candidate (`step-000025`) -> its Hugging Face folder."""


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


class ReportRequest(Request):
    """`results.json`, `metrics.jsonl` and `report.html` of a run; `output` is the run directory itself."""
