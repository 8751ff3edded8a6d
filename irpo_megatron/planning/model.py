"""Which model a configuration is about: from its folder, its random shape, or a well-known name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.artifacts import Json, read_json
from irpo_megatron.config import Config, RandomModel
from irpo_megatron.config_file import load_config
from irpo_megatron.errors import UserError
from irpo_megatron.model_config import with_defaults
from irpo_megatron.model_folder import CONFIG, read_config
from irpo_megatron.planning.known_shapes import KNOWN_CONFIGS, known_name
from irpo_megatron.planning.shape import Shape, read_shape

# Of a task's alphabet and the special tokens: `characters` has the size that it has, which is known once it is made.
_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class Model:
    """A shape with where it is from.

    Attributes:
        config: Of a Hugging Face config.json, the keys that say the shape, its defaults filled in.
        source: A sentence.
    """

    name: str
    config: Json
    shape: Shape
    source: str


def find_model(config: Config, known: str | None) -> Model:
    """The model that a run starts from.

    Args:
        known: The name of a well-known shape to plan for instead.

    Raises:
        UserError: there is no such name, or the folder is not here and its name is none that is known.
    """
    if known is not None:
        if known not in KNOWN_CONFIGS:
            raise UserError(
                f"--model {known}", f"the shapes known are {', '.join(KNOWN_CONFIGS)}", "choose one of them"
            )
        return _model(known, KNOWN_CONFIGS[known], f"model: the shape of {known}, as given")
    made = config.run_dir / "base-model" / CONFIG
    if made.is_file():
        return _model(config.name, read_json(made), f"model: {made}")
    if config.model.random is not None:
        return _model(config.name, _of_random(config.model.random), "model: random weights, as configured")
    if config.model.recipe is not None:
        defaults = {"data": {"train": config.data.train, "test": config.data.test}, "seed": config.seed}
        recipe = load_config(config.model.recipe, defaults=defaults).model_copy(update={"runs": config.runs})
        return find_model(recipe, None)
    assert config.model.path is not None
    return _of_folder(config.model.path)


def _of_folder(folder: Path) -> Model:
    if folder.is_dir():
        return _model(folder.name, read_config(folder), f"model: {folder / CONFIG}")
    name = known_name(folder)
    if name is None:
        raise UserError(
            f"no folder {folder}, and its name is none of a known shape",
            f"a plan needs config.json, or one of the shapes {', '.join(KNOWN_CONFIGS)}",
            "correct model.path, or name the shape, for example --model llama2-70b",
        )
    return _model(name, KNOWN_CONFIGS[name], f"model: no folder {folder} here; by its name the shape of {name}")


def _model(name: str, config: Json, source: str) -> Model:
    shape = read_shape(config)
    return Model(
        name=name, config=with_defaults(config), shape=shape, source=f"{source}; {shape.parameters:,} parameters"
    )


def _of_random(random: RandomModel) -> Json:
    tokenizer = random.tokenizer
    return {
        "model_type": "llama",
        "hidden_size": random.hidden_size,
        "num_hidden_layers": random.layers,
        "num_attention_heads": random.heads,
        "num_key_value_heads": random.kv_heads,
        "intermediate_size": random.ffn_size,
        "vocab_size": tokenizer.vocabulary if tokenizer.kind == "bpe" else _CHARACTERS,
    }
