"""What is checked before anything heavy starts, besides the configuration itself."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from irpo_megatron.artifacts import Json
from irpo_megatron.config import Config
from irpo_megatron.errors import UserError
from irpo_megatron.generation_environment import check_generation_environment
from irpo_megatron.model_config import head_size, kv_heads, with_defaults
from irpo_megatron.model_folder import open_model_folder, require_context
from irpo_megatron.nvidia_packages import refuse_other_apex, require_transformer_engine
from irpo_megatron.records import Problem, read_rows
from irpo_megatron.tasks import load_task
from irpo_megatron.tokenizer import Tokenizer

_NEEDED = {"torch": "train", "megatron": "train", "transformers": "train", "matplotlib": "report", "jinja2": "report"}


def check_installation(config: Config) -> None:
    """Every package that a stage will need can be found, where it will run; the task knows the grading asked for.

    Raises:
        UserError: one cannot be found, or is another than it is called, or the task does not know it.
    """
    load_task(config.task, grading=config.scoring.grading)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(sorted({_NEEDED[name] for name in missing}))
        raise UserError(
            f"not installed: {', '.join(missing)}",
            "the loop trains, converts, generates and reports on this machine",
            f'pip install "irpo-megatron[{extras}]"',
        )
    refuse_other_apex()
    check_generation_environment(config.generation)
    if config.precision.fp8 is not None:
        require_transformer_engine(f"precision.fp8.recipe = {config.precision.fp8.recipe}")
    trackers = [name for name in config.tracking.to if importlib.util.find_spec(name) is None]
    if trackers:
        raise UserError(
            f"tracking.to names {', '.join(trackers)}, which cannot be imported",
            "a tracker's package must be installed beside the trainer",
            f"pip install {' '.join(trackers)}, or take it out of tracking.to",
        )


def check_model(config: Config, problems: Path, folder_path: Path) -> None:
    """M_0 is complete, has an end token, divides over the layout, and has room for every prompt and its completion.

    Raises:
        UserError: the first of these that does not hold.
    """
    folder = open_model_folder(folder_path)
    tokenizer = Tokenizer(folder_path)
    model = with_defaults(folder.config)
    _check_layout(config, model)
    check_fp8_shape(config, model)
    task = load_task(config.task)
    rows = [row for name in ("train", "held_out", "test") for row in read_rows(problems / f"{name}.parquet", Problem)]
    lengths = {problem.id: len(tokenizer.encode_prompt(task.prompt(problem))) for problem in rows}
    require_context(lengths, config.generation.max_tokens, folder)


def _check_layout(config: Config, model: Json) -> None:
    """Tensor parallelism cuts heads and feed-forward, pipeline parallelism cuts layers: evenly, or not at all."""
    parallel = config.parallel
    stages = {"parallel.pipeline": parallel.pipeline}
    if parallel.virtual_pipeline > 1:
        stages["parallel.virtual_pipeline"] = parallel.virtual_pipeline
    cut = {
        "num_attention_heads": {"parallel.tensor": parallel.tensor},
        "num_key_value_heads": {"parallel.tensor": parallel.tensor},
        "intermediate_size": {"parallel.tensor": parallel.tensor},
        "num_hidden_layers": stages,
    }
    for key, parts in cut.items():
        value = model.get(key)
        if isinstance(value, int) and value % math.prod(parts.values()) != 0:
            name = " x ".join(parts)
            raise UserError(
                f"the model has {key} = {value}, {', '.join(f'{axis} = {size}' for axis, size in parts.items())}",
                f"{name} divides {key}",
                f"choose a {name} that divides {value}",
            )


def check_fp8_shape(config: Config, model: Json) -> None:
    """Transformer Engine multiplies FP8 matrices in whole blocks; Megatron-Core keeps layers of one stage in bf16.

    Args:
        model: A Hugging Face config.json, its defaults filled in.

    Raises:
        UserError: a width of the model, as a tensor-parallel rank has it, is no multiple of the block, or more layers
            are to stay in bf16 than a pipeline stage has; or its heads are not sane.
    """
    fp8 = config.precision.fp8
    if fp8 is None:
        return
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    heads, groups, size = model["num_attention_heads"], kv_heads(model), head_size(model)
    widths = {
        "hidden_size": model["hidden_size"],
        "intermediate_size / parallel.tensor": model["intermediate_size"] // tensor,
        "num_attention_heads x head size / parallel.tensor": heads * size // tensor,
        "(num_attention_heads + 2 x num_key_value_heads) x head size / parallel.tensor": (heads + 2 * groups)
        * size
        // tensor,
    }
    block = 32 if fp8.recipe == "mxfp8" else 16
    for name, width in widths.items():
        if width % block != 0:
            raise UserError(
                f"the model has {name} = {width}",
                f"FP8 by recipe {fp8.recipe} multiplies matrices whose sides are multiples of {block}",
                "set precision.fp8=null, or a smaller parallel.tensor where that divides the width",
            )
    kept, layers = max(fp8.first_layers_bf16, fp8.last_layers_bf16), model["num_hidden_layers"] // pipeline
    if kept > layers:
        raise UserError(
            f"precision.fp8 keeps {kept} layers at one end in bf16, and a pipeline stage has {layers}",
            "the layers that stay in bf16 are those of the first and of the last pipeline stage",
            f"keep {layers} or fewer",
        )
