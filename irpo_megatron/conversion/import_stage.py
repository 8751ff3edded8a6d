"""Hugging Face -> Megatron: M_0 as a distributed checkpoint that any layout can load.

python -m irpo_megatron.process irpo_megatron.conversion.import_stage REQUEST.json
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from irpo_megatron.artifacts import ProgressWriter, step_name
from irpo_megatron.config import ParallelConfig
from irpo_megatron.conversion.llama import COMPUTED_SUFFIXES, table
from irpo_megatron.conversion.verify import require_same_logits
from irpo_megatron.engine.architecture import Architecture, read_architecture
from irpo_megatron.engine.checkpoint import CheckpointWriter
from irpo_megatron.engine.model import build_model
from irpo_megatron.engine.parallel import parallel_world
from irpo_megatron.errors import UserError
from irpo_megatron.model_folder import ModelFolder, open_model_folder
from irpo_megatron.requests import ImportRequest


def run(request: ImportRequest) -> None:
    """Write the checkpoint `step-000000`: one process, one layout; loading reshards.

    Raises:
        RuntimeError: the Megatron model computes other logits than the folder, loaded by transformers.
    """
    folder = open_model_folder(request.model_folder)
    architecture = read_architecture(folder.config)
    with parallel_world(ParallelConfig(), threads=request.launch.threads) as place:
        (model,) = build_model(architecture, place)
        load_hugging_face(model, architecture, folder, request.output)
        require_same_logits(model, architecture, folder.path, place)
        CheckpointWriter(asynchronous=False).save_model(request.output / step_name(0), [model], folder.config)


def load_hugging_face(model: torch.nn.Module, architecture: Architecture, folder: ModelFolder, output: Path) -> None:
    """Fill a single-process model with a folder's tensors, one at a time.

    Raises:
        UserError: a tensor is missing, has another shape, or is not in the table.
    """
    parameters = dict(model.named_parameters())
    entries = list(table(architecture))
    _require_same_names(folder, {name for entry in entries for name in entry.hugging_face})
    progress = ProgressWriter(output, total=len(entries), unit="tensors")
    for entry in entries:
        joined = entry.join([_read(folder, name) for name in entry.hugging_face])
        target = parameters.pop(entry.megatron)
        if joined.shape != target.shape:
            raise UserError(
                f"{' + '.join(entry.hugging_face)} of {folder.path} make {tuple(joined.shape)}",
                f"by config.json it should be {tuple(target.shape)}",
                "the weights do not belong to this config.json: restore one of them",
            )
        with torch.no_grad():
            target.copy_(joined)
        progress.advance(1)
    assert not parameters, f"the table of the Llama family leaves out {sorted(parameters)}"


def _require_same_names(folder: ModelFolder, expected: set[str]) -> None:
    found = {name for name in folder.weight_files if not name.endswith(COMPUTED_SUFFIXES)}
    for names, what in ((expected - found, "lacks"), (found - expected, "has, besides those of a Llama,")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(
                f"{folder.path} {what} the tensors {shown}",
                "a Llama checkpoint has exactly the tensors that its config.json implies",
                "restore the folder; a tied lm_head needs tie_word_embeddings in config.json",
            )


def _read(folder: ModelFolder, name: str) -> torch.Tensor:
    with safe_open(folder.weight_files[name], framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
