"""What is checked before anything heavy starts, besides the configuration itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from irpo_megatron.config import Config
from irpo_megatron.containers import images_of
from irpo_megatron.errors import UserError
from irpo_megatron.generation_environment import check_generation_environment
from irpo_megatron.layout_rules import check_fp8_shape, check_layout
from irpo_megatron.model_config import unsaid_in_older_names, with_defaults
from irpo_megatron.model_folder import CONFIG, ModelFolder, open_model_folder, require_context
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
    images = images_of(config)
    if "generate" not in images:
        check_generation_environment(config.generation)
    if "train" in images:  # what is in an image is seen when the first stage starts in it
        return
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(sorted({_NEEDED[name] for name in missing}))
        raise UserError(
            f"not installed: {', '.join(missing)}",
            "the loop trains, converts, generates and reports on this machine",
            f'pip install "irpo-megatron[{extras}]"',
        )
    refuse_other_apex()
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

    And the engine that samples reads its config.json as training does.

    Raises:
        UserError: the first of these that does not hold.
    """
    folder = open_model_folder(folder_path)
    tokenizer = Tokenizer(folder_path)
    model = with_defaults(folder.config)
    check_layout(config, model)
    check_fp8_shape(config, model)
    if config.generation.backend == "tensorrt_llm":
        _require_older_rope_names(folder)
    task = load_task(config.task)
    rows = [row for name in ("train", "held_out", "test") for row in read_rows(problems / f"{name}.parquet", Problem)]
    lengths = {problem.id: len(tokenizer.encode_prompt(task.prompt(problem))) for problem in rows}
    require_context(lengths, config.generation.max_tokens, folder)


def _require_older_rope_names(folder: ModelFolder) -> None:
    """
    Raises:
        UserError: an engine with transformers 4 would take other rotary embeddings than training does.
    """
    missing = unsaid_in_older_names(folder.config)
    if missing:
        raise UserError(
            f"{folder.path / CONFIG} says it in rope_parameters alone, and has no {' and no '.join(missing)}",
            "TensorRT-LLM 1.2 brings transformers 4.57, which does not read rope_parameters and would sample "
            "with the rotary embeddings of another model",
            f"add to that file: {json.dumps(missing)[1:-1]}",
        )
