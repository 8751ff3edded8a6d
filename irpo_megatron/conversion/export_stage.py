"""Megatron -> Hugging Face: checkpoints of any layout as folders that transformers and TensorRT-LLM load.

python -m irpo_megatron.process irpo_megatron.conversion.export_stage REQUEST.json
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from irpo_megatron.artifacts import ProgressWriter, partial_directory, write_json
from irpo_megatron.config import ParallelConfig
from irpo_megatron.conversion.llama import table
from irpo_megatron.conversion.verify import require_same_logits
from irpo_megatron.engine.architecture import Architecture
from irpo_megatron.engine.checkpoint import read_config, stored_dtype
from irpo_megatron.engine.loading import load_policy
from irpo_megatron.engine.parallel import Place, parallel_world
from irpo_megatron.requests import ExportRequest

SHARD_BYTES = 5_000_000_000
# Files of the base model that go along unchanged; weights and config.json are written anew.
CARRIED_ALONG = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def run(request: ExportRequest) -> None:
    """Write one folder a checkpoint; those that a killed attempt finished are kept."""
    progress = ProgressWriter(request.output, total=len(request.checkpoints), unit="checkpoints")
    with parallel_world(ParallelConfig(), threads=request.launch.threads) as place:
        for name, checkpoint in request.checkpoints.items():
            folder = request.output / name
            if folder == request.output:
                export(checkpoint, folder, request.model_folder, place)
            elif not folder.exists():
                partial = partial_directory(folder)
                shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
                partial.mkdir(parents=True)
                export(checkpoint, partial, request.model_folder, place)
                partial.rename(folder)
            progress.advance(1)


def export(checkpoint: Path, folder: Path, base: Path, place: Place) -> None:
    """Write a checkpoint's weights into `folder`, with what goes along from `base`, and judge the folder by logits.

    Raises:
        RuntimeError: the folder, loaded by transformers, computes other logits than the checkpoint.
    """
    (model,), architecture = load_policy(checkpoint, place)
    # Computed and compared in fp32, written as they were trained, whatever the base model was stored in.
    dtype = stored_dtype(checkpoint)
    write_weights(folder, {name: tensor.to(dtype) for name, tensor in hugging_face_tensors(model, architecture)})
    config = read_config(checkpoint)
    dtype_key = "dtype" if "dtype" in config else "torch_dtype"
    write_json(folder / "config.json", {**config, dtype_key: str(dtype).removeprefix("torch.")})
    for name in CARRIED_ALONG:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    require_same_logits(model, architecture, folder, place)


def hugging_face_tensors(model: torch.nn.Module, architecture: Architecture) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a single-process model under its Hugging Face name."""
    parameters = dict(model.named_parameters())
    for entry in table(architecture):
        parts = entry.split(parameters[entry.megatron].detach())
        for name, part in zip(entry.hugging_face, parts, strict=True):
            yield name, part.contiguous()


def write_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """safetensors in shards of at most `SHARD_BYTES`, with an index where there is more than one."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        file_name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
