"""Hugging Face -> Megatron: M_0 as a distributed checkpoint that any layout can load.

python -m irpo_megatron.process irpo_megatron.conversion.import_stage REQUEST.json
"""

from __future__ import annotations

import shutil
from pathlib import Path

from irpo_megatron.artifacts import ProgressWriter, partial_directory, step_name, write_json
from irpo_megatron.config import ParallelConfig
from irpo_megatron.conversion.into_megatron import count_boxes, write_checkpoint
from irpo_megatron.conversion.progress import Progress
from irpo_megatron.conversion.tensor_files import open_folder
from irpo_megatron.conversion.verify import require_same_logits
from irpo_megatron.conversion.weights import Weights
from irpo_megatron.disk import full_disk_said, require_room
from irpo_megatron.engine.architecture import read_architecture
from irpo_megatron.engine.checkpoint import CONFIG, STATE
from irpo_megatron.engine.parallel import parallel_world
from irpo_megatron.requests import ImportRequest


def run(request: ImportRequest) -> None:
    """Write the checkpoint `step-000000`, and judge it by logits.

    Raises:
        UserError: the folder is not a model of a family that is supported, or is damaged.
        RuntimeError: the checkpoint computes other logits than the folder, loaded by transformers.
    """
    checkpoint = request.output / step_name(0)
    if checkpoint.exists():
        return
    partial = partial_directory(checkpoint)
    with full_disk_said(request.output):
        convert(
            request.model_folder,
            partial,
            tensor_parallel=request.parallel.tensor,
            threads=request.launch.threads,
            progress=lambda total: ProgressWriter(request.output, total=total, unit="tensors").advance,
        )
    with parallel_world(ParallelConfig(), threads=request.launch.threads) as place:
        require_same_logits(partial, request.model_folder, place)
    partial.rename(checkpoint)


def convert(folder: Path, checkpoint: Path, *, tensor_parallel: int, threads: int, progress: Progress) -> None:
    """Write a checkpoint into a directory.

    Args:
        checkpoint: Not yet where it is looked for.
        tensor_parallel: The layout that it will be read at, most of the time.
        threads: Tensors read and written at a time.
        progress: Told of parts of tensors.

    Raises:
        UserError: the folder is not a model of a family that is supported, or is damaged; or there is not enough room.
    """
    model = open_folder(folder)
    architecture = read_architecture(model.config)
    weights = Weights(model, architecture)
    shutil.rmtree(checkpoint / STATE, ignore_errors=True)  # of an attempt that was killed
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_json(checkpoint / CONFIG, model.config)
    require_room(weights.bytes, checkpoint)
    write_checkpoint(
        checkpoint / STATE,
        weights,
        architecture,
        tensor_parallel=tensor_parallel,
        threads=threads,
        advance=progress(count_boxes(weights, tensor_parallel)),
    )
