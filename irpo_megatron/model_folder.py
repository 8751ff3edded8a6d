"""A model folder as Hugging Face writes it: opened and checked before anything is computed with it.

Only headers are read, so a 140 GB folder opens in milliseconds, and nothing in it is executed: weights come from
safetensors, never from a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from irpo_megatron.artifacts import Json, read_json
from irpo_megatron.errors import UserError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""What can be converted and trained, with the `model_type` of each."""
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
COMPUTED_SUFFIXES = (".rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and that are computed from the configuration."""
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
NamesInPickle: TypeAlias = Callable[[Path], Iterable[str]]

# The safetensors library itself refuses a longer header; Llama-2-70B's is about 100 kB in all.
_LONGEST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """What `open_model_folder` found."""

    path: Path
    config: Json
    """config.json as it stands."""
    context: int
    """Longest sequence in tokens (`max_position_embeddings`)."""
    vocab_size: int
    """Rows of the embedding: at least the tokenizer's number of tokens."""
    weight_files: dict[str, Path]
    """Name of a tensor -> the safetensors file that holds it."""


def open_model_folder(path: Path, *, names_in_pickle: NamesInPickle | None = None) -> ModelFolder:
    """Check a folder: its config.json, and that every weight file is whole and holds what the index says.

    Args:
        names_in_pickle: Lists the tensors of a `pytorch_model.bin`; None refuses folders that have nothing else.

    Raises:
        UserError: the folder, config.json or the weights are missing or malformed, or the architecture is another.
    """
    if not path.is_dir():
        raise UserError(f"no folder {path}", "a model is a Hugging Face folder on this machine", "correct model.path")
    config = read_config(path)
    for key in _SHAPE:
        _positive_int(path, config, key)
    return ModelFolder(
        path=path,
        config=config,
        context=_positive_int(path, config, "max_position_embeddings"),
        vocab_size=_positive_int(path, config, "vocab_size"),
        weight_files=_weight_files(path, names_in_pickle),
    )


def require_context(prompt_lengths: Mapping[str, int], max_tokens: int, folder: ModelFolder) -> None:
    """Check that every prompt leaves room for a completion of `max_tokens` tokens.

    Args:
        prompt_lengths: Problem id -> tokens of its prompt, BOS included.
        max_tokens: Longest completion in tokens (`generation.max_tokens`).

    Raises:
        UserError: the longest prompt, named with its length, does not fit.
    """
    if not prompt_lengths:
        return
    longest = max(prompt_lengths, key=lambda prompt_id: prompt_lengths[prompt_id])
    length = prompt_lengths[longest]
    if length + max_tokens <= folder.context:
        return
    too_long = sum(tokens + max_tokens > folder.context for tokens in prompt_lengths.values())
    raise UserError(
        f"the prompt of {longest} has {length} tokens, and generation.max_tokens = {max_tokens}: together "
        f"{length + max_tokens} ({too_long} of {len(prompt_lengths)} prompts do not fit)",
        f"prompt and completion fit into the model's context of {folder.context} tokens ({folder.path})",
        f"set generation.max_tokens to {folder.context - length} or less"
        if length < folder.context
        else "leave the long problems out of the data, or use a model with a longer context",
    )


def read_config(path: Path) -> Json:
    """A folder's config.json, of a family that this package knows.

    Raises:
        UserError: it is missing, unreadable, or of another architecture.
    """
    if not (path / CONFIG).is_file():
        raise UserError(
            f"{path} has no {CONFIG}",
            "a model folder holds config.json, safetensors weights and a tokenizer",
            "point to the folder that holds config.json itself (in the Hub's cache: snapshots/<revision>)",
        )
    config = read_json(path / CONFIG)
    architectures, model_type = config.get("architectures"), config.get("model_type")
    found = next((name for name in ARCHITECTURES if architectures == [name]), None)
    if found is None:
        raise UserError(
            f"{path / CONFIG} has architectures = {json.dumps(architectures)}",
            f"the architectures that this package converts and trains are {', '.join(ARCHITECTURES)}",
            "use a Llama 2 or 3, a Mistral, a Qwen 2, 2.5 or 3 without experts, or a derivative",
        )
    if model_type != ARCHITECTURES[found]:
        raise UserError(
            f"{path / CONFIG} has architectures = {json.dumps(architectures)}, model_type = {json.dumps(model_type)}",
            f"the model_type of {found} is {ARCHITECTURES[found]}",
            f"restore {CONFIG}",
        )
    return config


def _positive_int(path: Path, config: Json, key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise UserError(
            f"{path / CONFIG} has {key} = {json.dumps(value)}", f"{key} is a whole number above 0", f"restore {CONFIG}"
        )
    return value


def _weight_files(path: Path, names_in_pickle: NamesInPickle | None) -> dict[str, Path]:
    """Tensor name -> file. As in transformers, the single file goes before an index where both exist."""
    if (path / WEIGHTS).is_file():
        return dict.fromkeys(read_tensor_entries(path / WEIGHTS), path / WEIGHTS)
    if (path / WEIGHTS_INDEX).is_file():
        return _indexed_weight_files(path)
    if names_in_pickle is not None and (path / PICKLE).is_file():
        return dict.fromkeys(names_in_pickle(path / PICKLE), path / PICKLE)
    if any(path.glob("pytorch_model*.bin")):
        raise UserError(
            f"{path} has its weights in pytorch_model.bin only",
            "weights are read from safetensors: a .bin file is a pickle, which can run code",
            f"write them anew: AutoModelForCausalLM.from_pretrained('{path}').save_pretrained(NEW); a single file "
            f"larger than memory: irpo convert hf-to-megatron {path} THERE, then megatron-to-hf THERE {path} NEW",
        )
    raise UserError(
        f"{path} has neither {WEIGHTS} nor {WEIGHTS_INDEX}",
        "the weights are one safetensors file, or several and their index",
        "download the folder again, the index included",
    )


def _indexed_weight_files(path: Path) -> dict[str, Path]:
    index = path / WEIGHTS_INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f"{index} has no weight_map", "an index maps tensor names to file names", f"restore {index.name}"
        )
    tensors_in: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(map(str, weight_map.values())):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UserError(
                f"{index} names the file '{name}'",
                "an index names files of its own folder, without any path",
                "do not use this folder: its index reaches outside; get the model from its source",
            )
        if not (path / name).is_file():
            raise UserError(
                f"{path} has no {name}", f"every file that {index.name} names exists", "download the missing file"
            )
        tensors_in[name] = read_tensor_entries(path / name)
    for name, tensors in tensors_in.items():
        for tensor in tensors:
            if weight_map.get(tensor) != name and not tensor.endswith(COMPUTED_SUFFIXES):
                raise UserError(
                    f"{path / name} holds {tensor}, which {index.name} "
                    + (f"says is in {weight_map[tensor]}" if tensor in weight_map else "does not name"),
                    "a tensor is in one file, and the index names it",
                    "download the folder again: index and weights are of different versions",
                )
    for tensor, name in weight_map.items():
        if tensor not in tensors_in[str(name)]:
            raise UserError(
                f"{path / str(name)} lacks the tensor {tensor}",
                f"a file holds the tensors that {index.name} says it holds",
                "download the folder again: index and weights are of different versions",
            )
    return {tensor: path / str(name) for tensor, name in weight_map.items()}


def read_tensor_entries(file: Path) -> dict[str, Any]:
    """The header of a safetensors file, tensor name -> `{dtype, shape, data_offsets}`, checked against the file's size.

    The layout (github.com/huggingface/safetensors, README): 8 bytes, the header's length as a little-endian integer;
    the header, a JSON object; then the tensors' bytes, end to end without gaps.

    Raises:
        UserError: the file is shorter or longer than its header says, or the header is garbled.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, _LONGEST_HEADER_BYTES):
            raise _damaged(file, f"has {size} bytes and announces a header of {header_bytes} bytes")
        text = stream.read(header_bytes)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for name, entry in entries.items():
            _check_entry(name, entry)
        spans = sorted((begin, end) for begin, end in (entry["data_offsets"] for entry in entries.values()))
        end_of_data = _end_of(spans)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"has a garbled header ({type(error).__name__}: {error})") from error
    if size != 8 + header_bytes + end_of_data:
        raise _damaged(file, f"has {size} bytes, its header says {8 + header_bytes + end_of_data}")
    return entries


def _check_entry(name: str, entry: dict[str, Any]) -> None:
    """ValueError, TypeError or KeyError where an entry contradicts itself."""
    begin, end = entry["data_offsets"]
    size = math.prod(entry["shape"]) * _BYTES.get(entry["dtype"], 0)
    if entry["dtype"] in _BYTES and end - begin != size:
        raise ValueError(f"{name} is {entry['shape']} of {entry['dtype']} in {end - begin} bytes")


def _end_of(spans: list[tuple[int, int]]) -> int:
    """Where the last of the tensors' sorted byte ranges ends; ValueError where they leave a gap or overlap."""
    position = 0
    for begin, end in spans:
        if begin != position or end < begin:
            raise ValueError(f"bytes {begin} to {end} do not follow byte {position}")
        position = end
    return position


def _damaged(file: Path, what: str) -> UserError:
    return UserError(
        f"{file} {what}",
        "a weight file is a whole safetensors file",
        "download it again; the copy was cut off or damaged",
    )
