"""Megatron -> Hugging Face: checkpoints of any layout as folders that transformers and TensorRT-LLM load.

python -m irpo_megatron.process irpo_megatron.conversion.export_stage REQUEST.json
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from irpo_megatron.artifacts import ProgressWriter, partial_directory, write_json
from irpo_megatron.config import ExportDtype, ParallelConfig
from irpo_megatron.conversion.out_of_megatron import CheckpointWeights, write_weights
from irpo_megatron.conversion.progress import Advance, Progress
from irpo_megatron.conversion.verify import require_same_logits
from irpo_megatron.disk import full_disk_said
from irpo_megatron.engine.architecture import read_architecture
from irpo_megatron.engine.checkpoint import read_config
from irpo_megatron.engine.parallel import parallel_world
from irpo_megatron.model_files import carried_along
from irpo_megatron.requests import ExportRequest

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run(request: ExportRequest) -> None:
    """Write one folder a checkpoint, and judge each by logits; those that a killed attempt finished are kept.

    Raises:
        RuntimeError: a folder, loaded by transformers, computes other logits than its checkpoint.
    """
    missing = {
        name: checkpoint
        for name, checkpoint in request.checkpoints.items()
        if request.output / name == request.output or not (request.output / name).exists()
    }
    tensors = _Tensors(request.output, checkpoints=len(missing))
    with parallel_world(ParallelConfig(), threads=request.launch.threads) as place:
        for name, checkpoint in missing.items():
            folder = request.output / name
            partial = folder if folder == request.output else partial_directory(folder)
            partial.mkdir(parents=True, exist_ok=True)
            with full_disk_said(partial):
                convert(
                    checkpoint,
                    partial,
                    base=request.model_folder,
                    dtype=request.conversion.dtype,
                    threads=request.launch.threads,
                    progress=tensors,
                )
            require_same_logits(checkpoint, partial, place)
            if partial != folder:
                partial.rename(folder)


class _Tensors:
    """Progress over several checkpoints of one model."""

    def __init__(self, output: Path, *, checkpoints: int) -> None:
        self._output, self._checkpoints = output, checkpoints
        self._writer: ProgressWriter | None = None

    def __call__(self, total: int) -> Advance:
        self._writer = self._writer or ProgressWriter(self._output, total=total * self._checkpoints, unit="tensors")
        return self._writer.advance


def convert(
    checkpoint: Path, folder: Path, *, base: Path, dtype: ExportDtype | None, threads: int, progress: Progress
) -> None:
    """Write a checkpoint's weights into `folder`, with config.json and what goes along from `base`.

    Weight files that an attempt which was killed has finished are kept.

    Args:
        dtype: What the weights are written in; None as they are.
        threads: Files written at a time.
        progress: Told of tensors.

    Raises:
        UserError: the checkpoint is damaged or is not what its config.json says.
    """
    config = read_config(checkpoint)
    weights = CheckpointWeights(checkpoint, read_architecture(config))
    written = weights.dtype if dtype is None else _DTYPES[dtype]
    write_weights(folder, weights, dtype=written, threads=threads, progress=progress)
    dtype_key = "dtype" if "dtype" in config else "torch_dtype"
    write_json(folder / "config.json", {**config, dtype_key: str(written).removeprefix("torch.")})
    for name in carried_along(base):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(base / name, folder / name)
