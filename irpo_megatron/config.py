"""The one configuration tree: every key, its default and its meaning stand here, and in
`config_generation` and `config_launch`.

Each section checks its own values. `config_file` reads the tree from YAML, `config_rules` holds the rules between
sections, `config_text` writes it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.config_launch import LaunchConfig
from irpo_megatron.config_section import (
    Decay,
    Float,
    Int,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)

Method = Literal["irpo", "star", "sft"]
ExportDtype = Literal["fp32", "bf16", "fp16"]


class RandomTokenizer(Section):
    """The tokenizer of a randomly initialised model."""

    kind: Literal["characters", "bpe"]
    """`characters`: one token a character of the task's alphabet. `bpe`: byte-level BPE learned from training data."""
    vocabulary: PositiveInt = 512
    """Size of a `bpe` vocabulary, special tokens included; `characters` has the size that it has."""


class RandomModel(Section):
    """A small Llama with random weights, for demonstrations and tests."""

    tokenizer: RandomTokenizer
    """How text becomes tokens."""
    hidden_size: PositiveInt = 64
    """Width of the residual stream."""
    layers: PositiveInt = 3
    """Number of decoder layers."""
    heads: PositiveInt = 4
    """Number of attention heads; must divide `hidden_size`."""
    kv_heads: PositiveInt = 4
    """Number of key-value heads (grouped-query attention); must divide `heads`."""
    ffn_size: PositiveInt = 192
    """Width of the gated feed-forward layer."""
    context: PositiveInt = 256
    """Longest sequence, prompt and completion together, in tokens."""


class ModelConfig(Section):
    """M_0, the model that iteration 1 starts from: exactly one of the three keys is given."""

    path: Path | None = None
    """A Hugging Face folder: config.json, safetensors, tokenizer."""
    recipe: Path | None = None
    """Another configuration: it is run first, and its last checkpoint is M_0; data and seed default to this run's."""
    random: RandomModel | None = None
    """A randomly initialised small model, made in the run directory."""


class DataConfig(Section):
    """Where the problems come from."""

    train: str
    """Training problems: a file, a folder, `hub:owner/name`, or `generate:...` where the task can make its own."""
    test: str
    """Test problems, in the same forms; used by evaluation only."""
    train_limit: PositiveInt | None = None
    """Use only this many training problems, drawn by the seed; null uses all."""
    test_limit: PositiveInt | None = None
    """Use only this many test problems, drawn by the seed; null uses all."""
    problems_per_iteration: PositiveInt | None = None
    """Sample only this many training problems in each iteration, drawn anew by the seed; null samples all."""


class ScoringConfig(Section):
    """How a completion is judged."""

    grading: Literal["strict", "math-verify"] | None = None
    """The task's default where null; `math` also knows `math-verify`."""
    workers: PositiveInt | None = None
    """Processes that grade side by side; null takes one for each CPU core that the stage may use."""


class PairsConfig(Section):
    """How winners and losers become pairs (section 2 of the paper)."""

    per_prompt: PositiveInt = 10
    """K: pairs a prompt; winners and losers are walked round and round until there are K."""
    gold_as_winner: bool = False
    """Add the gold solution to the winners, as the paper does for GSM8K."""
    deduplicate: bool = False
    """Keep one of equal completions before pairing."""
    max_pairs: PositiveInt | None = None
    """At most this many pairs an iteration, drawn by the seed (the paper: 60,000); null keeps all."""
    max_tokens: PositiveInt | None = None
    """Drop pairs with a sequence, prompt included, longer than this; null means the model's context."""


class LossConfig(Section):
    """Equation 1 of the paper (v3)."""

    alpha: NonNegativeFloat = 1.0
    """Weight of the winner's length-normalised NLL; 0 with method `irpo` is plain DPO."""
    beta: PositiveFloat = 0.1
    """Inverse temperature of the DPO term."""


class TrainingConfig(Section):
    """AdamW on pairs (the paper: 16 pairs a batch, learning rate 7e-7; the rest is not stated there)."""

    global_batch_size: PositiveInt = 16
    """Pairs an optimizer step, over all data-parallel ranks."""
    micro_batch_tokens: PositiveInt = 4096
    """Pairs are packed into micro-batches of up to this many tokens; a longer pair is a micro-batch of its own."""
    micro_batch_size: PositiveInt | None = None
    """Pairs a micro-batch, padded to the longest, instead of packing; null packs."""
    shared_prompt: bool | None = None
    """Compute the prompt of a pair once for both completions; null does where the attention in use can."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Compute activations again in the backward pass: of attention (`selective`), of whole layers (`full`)."""
    log_prob_mib: PositiveInt = 256
    """MiB of logits (fp32) that a rank holds at once; more completion tokens are computed in turns."""
    epochs: PositiveInt = 1
    """Passes over the iteration's pairs."""
    max_steps: PositiveInt | None = None
    """At most this many optimizer steps an iteration (the paper: 5,000); null sets no limit."""
    shuffle: bool = True
    """Visit the pairs in an order drawn by the seed; false keeps the order of the data (a curriculum)."""
    learning_rate: PositiveFloat = 7e-7
    """Peak learning rate."""
    min_learning_rate: NonNegativeFloat = 0.0
    """Where the schedule ends."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (not on norms)."""
    adam_beta1: Decay = 0.9
    """Decay of the first moment."""
    adam_beta2: Decay = 0.999
    """Decay of the second moment."""
    adam_epsilon: PositiveFloat = 1e-8
    """Adam's denominator term."""
    clip_gradient: NonNegativeFloat = 1.0
    """Clip the global gradient norm to this; 0 does not clip."""
    skip_bad_batches: NonNegativeInt = 0
    """Leave out up to this many batches an iteration whose loss or gradient is not finite; 0 stops at the first."""
    save_every: PositiveInt | None = None
    """Also save a resume point every this many steps; null saves at the candidate steps, and when asked to stop."""
    keep_resume_points: PositiveInt = 1
    """Resume points that are kept while training runs."""


class Fp8Config(Section):
    """FP8 matrix products by Transformer Engine (CUDA only)."""

    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"]
    """How scales are found: from past maxima, a tensor at a time, a block at a time, or in MXFP8's own blocks."""
    format: Literal["hybrid", "e4m3"] = "hybrid"
    """`hybrid`: E4M3 forward, E5M2 for gradients. `e4m3`: E4M3 for both."""
    amax_history: PositiveInt = 1024
    """Recipe `delayed`: steps of maxima that a scale looks back on."""
    margin: NonNegativeInt = 0
    """Recipe `delayed`: powers of two by which scales stay below the largest possible."""
    first_layers_bf16: NonNegativeInt = 0
    """Layers at the start that stay in bf16 (not with recipe `delayed`)."""
    last_layers_bf16: NonNegativeInt = 0
    """Layers at the end that stay in bf16 (not with recipe `delayed`)."""


class PrecisionConfig(Section):
    """The numbers that training and the reference pass compute with; main weights and gradient sums are always fp32."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """Weights and activations of the model."""
    fp8: Fp8Config | None = None
    """FP8 on top of bf16; null computes in `dtype`."""


class ParallelConfig(Section):
    """The layout of training: tensor x context x pipeline x data processes."""

    tensor: PositiveInt = 1
    """Tensor-parallel size (TP)."""
    sequence: bool = False
    """Sequence parallelism (SP): norms and residuals, too, are cut over the tensor-parallel ranks, along the tokens."""
    context: PositiveInt = 1
    """Context-parallel size (CP): the tokens of a micro-batch are cut over so many ranks."""
    pipeline: PositiveInt = 1
    """Pipeline-parallel size (PP)."""
    virtual_pipeline: PositiveInt = 1
    """Groups of layers a pipeline rank holds (VPP): above 1 the stages are interleaved."""
    data: PositiveInt = 1
    """Data-parallel size (DP), with the optimizer's state cut over the ranks."""

    @property
    def world_size(self) -> int:
        return self.tensor * self.context * self.pipeline * self.data


class ConversionConfig(Section):
    """What M_t is written as for generation, evaluation and release."""

    dtype: ExportDtype | None = None
    """Type of the weights; null writes them in what they were trained in."""


class SelectionConfig(Section):
    """The choice of a checkpoint on held-out training problems."""

    held_out: NonNegativeInt | Annotated[Float, Field(gt=0, lt=1)] = 1000
    """Training problems set aside to judge checkpoints: a count, or a share below 1; 0 only with one candidate."""
    candidates: PositiveInt = 4
    """Checkpoints judged an iteration, spread evenly over its steps; 1 takes the last one unjudged."""
    keep_last: NonNegativeInt | None = None
    """Once one is chosen, keep on disk only it and the last so many of the others; null keeps all."""
    retrain: bool = False
    """Train again from M_{t-1}, held-out problems included, for as many steps as the best candidate (paper, 3.1)."""


class EvaluationConfig(Section):
    """What is measured on the test problems: greedy accuracy always, sampling where `samples` is given."""

    samples: NonNegativeInt = 32
    """k of maj@k: sampled completions a problem; 0 leaves maj@k and pass@k out."""
    temperature: PositiveFloat = 0.8
    """Temperature of those samples."""
    pass_at: tuple[PositiveInt, ...] = (1, 8, 32)
    """The k of pass@k; each at most `samples`."""


class TrackingConfig(Section):
    """Where the training metrics go besides metrics.jsonl."""

    to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Any of `tensorboard`, `wandb`, `mlflow`; the latter two are installed apart and read their own variables."""


class Config(Section):
    """A run: the loop's own keys, and a section for each room."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run directory."""
    runs: Path = Path("runs")
    """Folder that holds run directories."""
    task: Literal["gsm8k", "math", "arc", "arithmetic"]
    """Prompt, answer extraction and grading."""
    method: Method = "irpo"
    """`irpo`: DPO + alpha x NLL on pairs. `star`: NLL on the chosen completions. `sft`: NLL on the gold solutions."""
    iterations: PositiveInt = 4
    """How often the loop runs; more can be asked for later in the same run directory."""
    seed: Annotated[Int, Field(ge=0, lt=2**31)] = 0
    """Every random choice derives from it."""
    model: ModelConfig = ModelConfig()
    data: DataConfig
    generation: GenerationConfig = GenerationConfig()
    scoring: ScoringConfig = ScoringConfig()
    pairs: PairsConfig = PairsConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    precision: PrecisionConfig = PrecisionConfig()
    parallel: ParallelConfig = ParallelConfig()
    selection: SelectionConfig = SelectionConfig()
    conversion: ConversionConfig = ConversionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    launch: LaunchConfig = LaunchConfig()

    @property
    def run_dir(self) -> Path:
        return self.runs / self.name


# Keys, and whole sections, that change how a result is computed but not the result (layouts: beyond rounding, which is
# coarse in FP8): they may differ between two starts of one run, so that training can go on at another layout.
RESULT_NEUTRAL = frozenset(
    {
        "runs",
        "iterations",
        "generation.python",
        "generation.transformers.kv_cache_mib",
        "generation.tensorrt_llm.tensor_parallel",
        "generation.tensorrt_llm.pipeline_parallel",
        "generation.tensorrt_llm.max_num_tokens",
        "generation.tensorrt_llm.chunked_prefill",
        "generation.tensorrt_llm.block_reuse",
        "generation.tensorrt_llm.kv_cache_fraction",
        "generation.tensorrt_llm.cuda_graphs",
        "generation.tensorrt_llm.timeout_seconds",
        "generation.openai.url",
        "generation.openai.concurrency",
        "generation.openai.timeout_seconds",
        "generation.openai.retries",
        "generation.batch_size",
        "generation.shard_prompts",
        "generation.workers",
        "generation.lease_seconds",
        "generation.max_empty_share",
        "generation.max_truncated_share",
        "generation.max_repeated_share",
        "generation.max_unparsable_share",
        "scoring.workers",
        "training.micro_batch_tokens",
        "training.micro_batch_size",
        "training.shared_prompt",
        "training.recompute",
        "training.log_prob_mib",
        "training.skip_bad_batches",
        "training.save_every",
        "training.keep_resume_points",
        "parallel.tensor",
        "parallel.sequence",
        "parallel.context",
        "parallel.pipeline",
        "parallel.virtual_pipeline",
        "parallel.data",
        "selection.keep_last",
        "tracking.to",
        "launch.stall_minutes",
        "launch.launcher",
        "launch.slurm",
    }
)


def is_neutral(key: str) -> bool:
    """Whether a dotted key, or a section that it lies in, is one of `RESULT_NEUTRAL`."""
    parts = key.split(".")
    return any(".".join(parts[: end + 1]) in RESULT_NEUTRAL for end in range(len(parts)))
