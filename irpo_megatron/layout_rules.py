"""The rules between a layout and the shape of a model, checked before a model is built."""

from __future__ import annotations

import math

from irpo_megatron.artifacts import Json
from irpo_megatron.config import Config
from irpo_megatron.errors import UserError
from irpo_megatron.model_config import head_size, kv_heads


def check_layout(config: Config, model: Json) -> None:
    """Tensor parallelism cuts heads and feed-forward, pipeline parallelism cuts layers: evenly, or not at all.

    Args:
        model: A Hugging Face config.json, its defaults filled in.

    Raises:
        UserError: a size of the layout does not divide what it cuts.
    """
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
