"""The one configuration tree: every key, its default and its meaning stand here and nowhere else.

`load_config` reads a YAML overlay (which may name another file as its `base`), applies dotted overrides and validates
the result. Each section checks its own values; rules between sections stand in `check_sections`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, to_jsonable_python

from irpo_megatron.errors import UserError

Method = Literal["irpo", "star", "sft"]


def _no_bool(value: object) -> object:
    """Refuse true and false where a number belongs: pydantic would take them for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
PositiveInt = Annotated[Int, Field(ge=1)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
Decay = Annotated[Float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen part of the tree that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


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


class GenerationConfig(Section):
    """How completions are sampled from M_{t-1} (section 3 of the paper: N = 30, T = 0.8 and 1.3)."""

    backend: Literal["transformers"] = "transformers"
    """The engine that samples."""
    samples: PositiveInt = 30
    """N: completions a prompt."""
    temperature: PositiveFloat | tuple[PositiveFloat, ...] = 0.8
    """Softmax temperature: one number, or one number an iteration."""
    top_p: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the fewest tokens with at least this probability; 1 keeps all (not stated in the paper)."""
    max_tokens: PositiveInt = 512
    """Longest completion in tokens, end token included (not stated in the paper)."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion as the end token does; they stay part of it."""
    batch_size: PositiveInt = 512
    """Completions decoded at once; changes speed and memory, never the output."""
    shard_prompts: PositiveInt = 64
    """Prompts a shard: what is lost when a worker dies; never changes the output."""
    max_empty_share: Share = 0.2
    """The stage fails where more than this share of the samples is empty."""
    max_truncated_share: Share = 0.5
    """The stage fails where more than this share of the samples hits `max_tokens`."""


class ScoringConfig(Section):
    """How a completion is judged."""

    grading: Literal["strict", "math-verify"] | None = None
    """The task's default where null; `math` also knows `math-verify`."""


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
    micro_batch_size: PositiveInt = 1
    """Pairs a rank computes at once."""
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
    save_every: PositiveInt | None = None
    """Also checkpoint every this many steps, for resumption; null saves at the candidate steps only."""


class ParallelConfig(Section):
    """The layout of training: tensor x pipeline x data processes."""

    tensor: PositiveInt = 1
    """Tensor-parallel size (TP)."""
    pipeline: PositiveInt = 1
    """Pipeline-parallel size (PP)."""
    data: PositiveInt = 1
    """Data-parallel size (DP)."""

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data


class SelectionConfig(Section):
    """The choice of a checkpoint on held-out training problems."""

    held_out: NonNegativeInt | Annotated[Float, Field(gt=0, lt=1)] = 1000
    """Training problems set aside to judge checkpoints: a count, or a share below 1; 0 only with one candidate."""
    candidates: PositiveInt = 4
    """Checkpoints judged an iteration, spread evenly over its steps; 1 takes the last one unjudged."""
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


class LaunchConfig(Section):
    """How the stages' processes are started."""

    threads: PositiveInt = 2
    """CPU threads a process; float sums depend on it, so it is part of the configuration and not of the machine."""


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
    parallel: ParallelConfig = ParallelConfig()
    selection: SelectionConfig = SelectionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    launch: LaunchConfig = LaunchConfig()

    @property
    def run_dir(self) -> Path:
        return self.runs / self.name


# Keys that change how a result is computed but never the result: they may differ between two starts of one run.
RESULT_NEUTRAL = frozenset(
    {
        "runs",
        "iterations",
        "generation.batch_size",
        "generation.shard_prompts",
        "generation.max_empty_share",
        "generation.max_truncated_share",
        "tracking.to",
    }
)


def load_config(path: Path, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> Config:
    """Read `path` over its bases, apply `section.key=value` overrides, validate.

    Args:
        defaults: A tree that the file is laid over.

    Raises:
        UserError: a file is missing or malformed, a key is unknown, or a value breaks a rule.
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise UserError(
                f"override '{override}'", "an override has the form section.key=value", "for example loss.alpha=0"
            )
    # A configuration is not trusted: it must not copy environment variables (tokens, say) into the run directory.
    OmegaConf.clear_resolver("oc.env")
    try:
        tree = _read_overlay(path, seen=())
        # The tree's own defaults lie below, so that `${seed}` has a value where no file gives one.
        merged = OmegaConf.merge(_default_tree(), defaults or {}, tree, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(
            f"{' '.join([str(path), *overrides])}: {error}", "the tree must resolve", "correct the key"
        ) from error
    config = validate(values, path)
    check_sections(config)
    return config


def _default_tree() -> dict[str, Any]:
    optional = {name: field.default for name, field in Config.model_fields.items() if not field.is_required()}
    tree: dict[str, Any] = to_jsonable_python(optional)
    return tree


def validate(values: object, path: Path) -> Config:
    """A resolved tree as a `Config`; the rules between sections are left to `check_sections`.

    Args:
        path: The file that the tree comes from, for the message.

    Raises:
        UserError: a key is unknown or missing, or a value breaks its section's rules.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _as_user_error(path, values, error) from error


def describe(config: Config) -> str:
    """The resolved tree as YAML, with the sentence that explains each key above it."""
    return "\n".join(_described(config, indent="")) + "\n"


def _described(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        # A section is explained by its own sentence.
        yield f"{indent}# {field.description or type(value).__doc__}"
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _described(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_on_one_line(section.model_dump(mode='json', include={name})[name])}"


class _OneLineDumper(yaml.SafeDumper):
    """Quotes text so that it never breaks the line."""


_OneLineDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def _on_one_line(value: object) -> str:
    text: str = yaml.dump(
        [value], Dumper=_OneLineDumper, default_flow_style=True, allow_unicode=True, width=sys.maxsize
    )
    return text.rstrip()[1:-1]


def _read_overlay(path: Path, seen: tuple[Path, ...]) -> DictConfig:
    """One YAML file merged over the file that its key `base` names (relative to itself)."""
    if path.resolve() in seen:
        raise UserError(f"{path} is its own base", "bases must not form a circle", "remove one `base:` key")
    if not path.is_file():
        raise UserError(f"no file {path}", "a configuration is a YAML file", "see examples/ for some to start from")
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: {error}", "a configuration is a mapping of keys in valid YAML", "correct the line named"
        ) from error
    if not isinstance(tree, DictConfig):
        raise UserError(
            f"{path} holds a {type(tree).__name__}", "a configuration is a mapping of keys", "write key: value"
        )
    # Paths to other configurations are relative to the file that names them, so that examples run from anywhere.
    recipe = OmegaConf.select(tree, "model.recipe")
    if isinstance(recipe, str):
        OmegaConf.update(tree, "model.recipe", str(path.parent / recipe))
    base = tree.pop("base", None)
    if base is None:
        return tree
    merged = OmegaConf.merge(_read_overlay(path.parent / str(base), (*seen, path.resolve())), tree)
    assert isinstance(merged, DictConfig)
    return merged


def _as_user_error(path: Path, values: object, error: ValidationError) -> UserError:
    """One sentence for each key that the user wrote, or should have."""
    seen: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for detail in error.errors():
        key, value = _as_written(detail["loc"], values)
        if detail["type"] == "missing":
            key = f"{key}.{detail['loc'][-1]}".lstrip(".")
            seen[key], rule = f"no {key}", f"{key} is required"
        elif detail["type"] == "extra_forbidden":
            seen[key], rule = f"unknown key {key}", f"{key}: only the keys that `irpo config` prints exist"
        else:
            is_section = detail["type"] in ("model_type", "model_attributes_type")
            message = "Input should be a section, a mapping of keys" if is_section else detail["msg"]
            # A second message comes from another member of a union, or from another entry of a list.
            rule = message.removeprefix("Input should be ") if key in rules else f"{key}: {message}"
            seen[key] = f"{key} = {value!r}"
        told = rules.setdefault(key, [])
        if not any(other.endswith(rule) for other in told):
            told.append(rule)
    broken = "; ".join(", or ".join(told) for told in rules.values())
    return UserError(f"{path}: " + "; ".join(seen.values()), broken, "correct the file or the override")


def _as_written(location: tuple[int | str, ...], values: object) -> tuple[str, object]:
    """The key that pydantic's `location` lies in, and its value: without members of unions and places in lists."""
    keys = []
    for part in location:
        if isinstance(values, dict) and part in values:
            keys.append(str(part))
            values = values[part]
    return ".".join(keys), values


def check_sections(config: Config) -> None:
    """The rules between sections, checked before anything starts.

    Raises:
        UserError: the first rule that is broken.
    """
    for broken, seen, rule, remedy in _section_rules(config):
        if broken:
            raise UserError(seen, rule, remedy)


def _section_rules(config: Config) -> Iterator[tuple[bool, str, str, str]]:
    """(broken?, value seen, rule, remedy) for every rule that spans keys."""
    model, training, parallel = config.model, config.training, config.parallel
    generation, selection, evaluation = config.generation, config.selection, config.evaluation
    origins = [key for key in ("path", "recipe", "random") if getattr(model, key) is not None]
    yield (
        len(origins) != 1,
        f"model has {' and '.join(origins) or 'none of path, recipe, random'}",
        "exactly one of model.path, model.recipe, model.random says where M_0 comes from",
        "set the others to null, for example model.recipe=null" if origins else "set model.path=FOLDER",
    )
    yield (
        config.method != "irpo" and config.loss.alpha == 0,
        f"method = {config.method}, loss.alpha = 0, pairs.per_prompt = {config.pairs.per_prompt}",
        f"method {config.method} has no DPO term, so alpha = 0 leaves nothing to train on its pairs",
        "set loss.alpha above 0, or method=irpo for plain DPO",
    )
    temperatures = generation.temperature
    yield (
        isinstance(temperatures, tuple) and len(temperatures) < config.iterations,
        f"generation.temperature = {temperatures}, iterations = {config.iterations}",
        "a list of temperatures has one for each iteration",
        "lengthen the list or give one number",
    )
    pairs_a_pass = training.micro_batch_size * parallel.data
    yield (
        training.global_batch_size % pairs_a_pass != 0,
        f"training.global_batch_size = {training.global_batch_size}, training.micro_batch_size = "
        f"{training.micro_batch_size}, parallel.data = {parallel.data}",
        "the global batch is a multiple of micro-batch size x data-parallel size, in pairs",
        f"use a multiple of {pairs_a_pass}",
    )
    yield (
        training.min_learning_rate > training.learning_rate,
        f"training.min_learning_rate = {training.min_learning_rate} > learning_rate = {training.learning_rate}",
        "the schedule falls from learning_rate to min_learning_rate",
        "lower min_learning_rate",
    )
    yield (
        selection.held_out == 0 and (selection.candidates > 1 or selection.retrain),
        f"selection.held_out = 0, candidates = {selection.candidates}, retrain = {selection.retrain}",
        "checkpoints are judged on held-out problems, so choosing or retraining needs some",
        "set selection.held_out, or selection.candidates=1 and selection.retrain=false",
    )
    too_large = [k for k in evaluation.pass_at if k > evaluation.samples]
    yield (
        evaluation.samples > 0 and bool(too_large),
        f"evaluation.pass_at has {too_large}, evaluation.samples = {evaluation.samples}",
        "pass@k is estimated from at least k samples",
        "raise evaluation.samples or shorten evaluation.pass_at",
    )
    yield (
        config.method == "sft" and config.iterations > 1,
        f"method = sft, iterations = {config.iterations}",
        "gold solutions do not change between iterations: more of the same training is training.epochs",
        "set iterations=1",
    )
    if model.random is not None:
        shape = model.random
        yield (
            shape.hidden_size % (2 * shape.heads) != 0 or shape.heads % shape.kv_heads != 0,
            f"model.random has hidden_size {shape.hidden_size}, heads {shape.heads}, kv_heads {shape.kv_heads}",
            "hidden_size / heads is a whole even number (rotary embeddings), and kv_heads divides heads",
            "choose for example hidden_size=64 heads=4 kv_heads=4",
        )
