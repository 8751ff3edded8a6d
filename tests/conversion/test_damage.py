"""Folders, checkpoints and disks that are not as they should be: one message, and nothing half-made in sight."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import SIGKILL
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ranks import in_child
from support.tiny_model import make_llama
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from irpo_megatron.artifacts import partial_directory
from irpo_megatron.conversion import out_of_megatron as out_of_megatron_room
from irpo_megatron.conversion import sharded_files, standalone
from irpo_megatron.conversion.compare import compare
from irpo_megatron.conversion.progress import Progress
from irpo_megatron.engine.architecture import read_architecture
from irpo_megatron.engine.checkpoint import read_config
from irpo_megatron.engine.checkpoint_metadata import read_metadata
from irpo_megatron.errors import UserError

Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("original") / "hf")


@pytest.fixture(scope="module")
def checkpoint(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("checkpoint") / "megatron"
    into_megatron(original, target)
    return target


def unwatched(_total: int) -> Callable[[int], None]:
    return lambda _count: None


def into_megatron(folder: Path, checkpoint: Path) -> None:
    standalone.hf_to_megatron(folder, checkpoint, tensor_parallel=1, threads=2, progress=unwatched)


def out_of_megatron(checkpoint: Path, base: Path, folder: Path) -> None:
    standalone.megatron_to_hf(checkpoint, base, folder, dtype=None, threads=2, progress=unwatched)


def refusal(convert: Callable[..., None], *arguments: Path) -> str:
    """What is said; the last argument, the output, must not be there."""
    with pytest.raises(UserError) as caught:
        convert(*arguments)
    assert not arguments[-1].exists()
    return str(caught.value)


def drop(tensors: Tensors) -> None:
    del tensors[UP]


def add(tensors: Tensors) -> None:
    tensors["model.layers.4.mlp.up_proj.weight"] = tensors[UP].clone()


def misname(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.down.weight"] = tensors.pop(UP)


def reshape(tensors: Tensors) -> None:
    tensors[UP] = tensors[UP].t().contiguous()


def retype(tensors: Tensors) -> None:
    tensors[UP] = tensors[UP].bfloat16()


def quantise(tensors: Tensors) -> None:
    for name in tensors:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def poison(tensors: Tensors) -> None:
    tensors[UP][3, 4] = float("nan")
    tensors[UP][5, 6] = float("-inf")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, f"lacks the tensors {UP}"),
        (add, "has, besides those of its family, the tensors model.layers.4.mlp.up_proj.weight"),
        (misname, f"lacks the tensors {UP}"),
        (reshape, f"{UP} of"),
        (retype, f"in F32, {UP} in BF16"),
        (quantise, "in F8_E4M3"),
        (poison, "2 numbers of model.layers.1.mlp.gate_proj.weight + model.layers.1.mlp.up_proj.weight"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_that_are_not_the_models(
    damage: Callable[[Tensors], None], message: str, original: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(original, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert message in refusal(into_megatron, folder, tmp_path / "out")


def test_files_that_are_not_whole_or_reach_outside(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "hf")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert f"{file} has {len(content) - 1} bytes, its header says {len(content)}" in refusal(
        into_megatron, folder, tmp_path / "out"
    )
    file.rename(tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    names = load_file(original / "model.safetensors")
    for where, message in {
        "../outside.safetensors": "names the file '../outside.safetensors'",
        str(tmp_path / "outside.safetensors"): "names files of its own folder, without any path",
        "model-00001-of-00001.safetensors": "has no model-00001-of-00001.safetensors",
    }.items():
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, where)}))
        assert message in refusal(into_megatron, folder, tmp_path / "out")
    shutil.copyfile(original / "model.safetensors", folder / "one.safetensors")
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(names, "one.safetensors"), "lie": "one.safetensors"}}))
    assert "lacks the tensor lie" in refusal(into_megatron, folder, tmp_path / "out")


class _Payload:
    def __init__(self, touched: Path) -> None:
        self._touched = touched

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self._touched,)


def test_of_a_pickle_only_tensors_are_read(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    old, touched = folder / "pytorch_model.bin", tmp_path / "touched"
    for hostile in ({**tensors, "more": _Payload(touched)}, {**tensors, "more": "text"}, [1]):
        torch.save(hostile, old)
        assert "of a pickle only tensors by name are read" in refusal(into_megatron, folder, tmp_path / "out")
    assert not touched.exists()
    torch.save(tensors, old)
    into_megatron(folder, tmp_path / "there")
    out_of_megatron(tmp_path / "there", folder, tmp_path / "back")
    assert not [tensor for tensor in compare(original, tmp_path / "back") if tensor.difference]
    old.rename(folder / "pytorch_model-00001-of-00002.bin")
    assert "a .bin file is a pickle, which can run code" in refusal(into_megatron, folder, tmp_path / "out")


def test_headers_and_indexes_that_contradict_themselves(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "hf")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    lies = {"shape": [7]}, "model.norm.weight is [7] of F32 in 128 bytes"
    lacks = {"data_offsets": None}, "has a garbled header (TypeError"
    for changes, message in (lies, lacks):
        text = json.dumps(header | {"model.norm.weight": header["model.norm.weight"] | changes}).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        assert message in refusal(into_megatron, folder, tmp_path / "out")
    tensors = load_file(original / "model.safetensors")
    file.unlink()
    save_file(tensors, folder / "one.safetensors")
    index = {name: "one.safetensors" for name in tensors}
    more = {"stranger.weight": torch.ones(2), "model.norm.weight": torch.ones(32)}
    for name, message in {
        "stranger.weight": "does not name",
        "model.norm.weight": "says is in one.safetensors",
    }.items():
        save_file({name: more[name], "filler": torch.ones(1)}, folder / "two.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": index | {"filler": "two.safetensors"}})
        )
        assert message in refusal(into_megatron, folder, tmp_path / "out")


def test_a_tied_model_may_hold_its_output_matrix_too(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "hf", tie_word_embeddings=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    into_megatron(folder, tmp_path / "there")
    assert not [tensor for tensor in compare(folder, tmp_path / "there") if tensor.difference]
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert "tied embeddings are one matrix" in refusal(into_megatron, folder, tmp_path / "out")


def test_numbers_that_a_narrower_type_cannot_hold(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors[UP][1, 2] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    into_megatron(folder, tmp_path / "there")
    with pytest.raises(UserError, match=rf"{UP} has numbers that torch.float16 cannot hold, up to 1e\+05"):
        standalone.megatron_to_hf(
            tmp_path / "there", folder, tmp_path / "out", dtype="fp16", threads=1, progress=unwatched
        )
    assert not (tmp_path / "out").exists()
    tensors[UP][1, 2] = 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    into_megatron(folder, tmp_path / "small")
    standalone.megatron_to_hf(
        tmp_path / "small", folder, tmp_path / "half", dtype="fp16", threads=1, progress=unwatched
    )
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(half[name], tensor.half()) for name, tensor in tensors.items())


def test_nothing_of_somebody_elses_is_removed(original: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "out.partial" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    assert "was made from something else" in refusal(into_megatron, original, tmp_path / "out")
    assert thesis.read_text() == "years of work"
    inside = shutil.copytree(original, tmp_path / "hf")
    assert "neither lies within the other" in refusal(into_megatron, inside, inside / "megatron")


def test_a_checkpoint_that_would_run_code(checkpoint: Path, original: Path, tmp_path: Path) -> None:
    """torch unpickles an entry that says it is no tensor without restriction, when a model is loaded."""
    hostile, touched = shutil.copytree(checkpoint, tmp_path / "hostile"), tmp_path / "touched"
    payload = pickle.dumps(_Payload(touched))
    (hostile / "state" / "x.distcp").write_bytes(payload)
    metadata = read_metadata(hostile / "state")
    entry = BytesStorageMetadata()
    entry.size = torch.Size([32])  # type: ignore[attr-defined]
    name = "decoder.final_layernorm.weight"
    metadata.state_dict_metadata[name] = entry
    metadata.storage_data[MetadataIndex(name)] = _StorageInfo("x.distcp", 0, len(payload))
    (hostile / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    assert f"{name} is no tensor" in refusal(out_of_megatron, hostile, original, tmp_path / "out")
    in_child(_load_policy, hostile)
    assert not touched.exists()


def _load_policy(checkpoint: Path) -> None:
    from irpo_megatron.config import ParallelConfig
    from irpo_megatron.engine.loading import load_policy
    from irpo_megatron.engine.parallel import parallel_world

    with parallel_world(ParallelConfig(), threads=1) as place:
        try:
            load_policy(checkpoint, place)
        except UserError as error:
            said = str(error)
    assert "is no tensor" in said


def test_a_checkpoint_that_is_cut_off_or_of_another_config(checkpoint: Path, original: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    for file in (cut / "state").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "a checkpoint's files hold what its metadata says" in refusal(
        out_of_megatron, cut, original, tmp_path / "out"
    )
    config = json.loads((checkpoint / "config.json").read_text())
    for changes, message in {
        ("num_hidden_layers", 3): "is (4, ",
        ("vocab_size", 31): "embedding.word_embeddings.weight of",
        ("tie_word_embeddings", True): "also has output_layer.weight",
    }.items():
        other = shutil.copytree(checkpoint, tmp_path / str(changes[0]))
        (other / "config.json").write_text(json.dumps(config | dict([changes])))
        assert message in refusal(out_of_megatron, other, original, tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB, less than the tiny model takes."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", where], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs rights that this user does not have")
    yield where
    subprocess.run(["umount", where], check=True)


def test_a_disk_that_is_too_small_is_seen_beforehand(original: Path, small_disk: Path) -> None:
    assert "GB are free" in refusal(into_megatron, original, small_disk / "out")


def test_a_disk_that_fills_up_meanwhile(original: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1 << 40))
    assert "No space left on device" in refusal(into_megatron, original, small_disk / "out")


@pytest.mark.parametrize("direction", ["into", "out of"])
def test_killed_half_way_it_is_taken_up_again(direction: str, original: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Killed at five moments: never is there an output, and in the end it is the undisturbed one."""
    out = tmp_path / "out"

    def convert(progress: Progress) -> None:
        if direction == "into":
            standalone.hf_to_megatron(original, out, tensor_parallel=2, threads=2, progress=progress)
        else:
            standalone.megatron_to_hf(checkpoint, original, out, dtype=None, threads=2, progress=progress)

    def killed_after(tensors: int) -> Progress:
        left = iter(range(tensors))
        return lambda _total: lambda _count: None if next(left, None) is not None else os.kill(os.getpid(), SIGKILL)

    for tensors in (0, 1, 5, 17, 29):
        process = multiprocessing.get_context("fork").Process(target=convert, args=[killed_after(tensors)])
        process.start()
        process.join()
        assert process.exitcode == -SIGKILL
        assert not out.exists()
    convert(unwatched)
    assert not partial_directory(out).exists()
    assert [path.name for path in out.rglob(".*")] == ([".metadata"] if direction == "into" else [])
    assert not [tensor for tensor in compare(original, out) if tensor.difference]


def test_finished_files_are_kept(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = sharded_files.plan_files
    monkeypatch.setattr(out_of_megatron_room, "plan_files", partial(plan, file_bytes=40_000))
    weights = out_of_megatron_room.CheckpointWeights(checkpoint, read_architecture(read_config(checkpoint)))
    write = partial(
        out_of_megatron_room.write_weights, tmp_path, weights, dtype=torch.float32, threads=2, progress=unwatched
    )
    write()
    first = {path.name: path.stat().st_ino for path in tmp_path.glob("*.safetensors")}
    # As a kill leaves it: a file is there, but nobody has said that it is whole.
    unfinished = sorted(first)[1]
    (tmp_path / f".{unfinished}.sha256").unlink()
    write()
    second = {path.name: path.stat().st_ino for path in tmp_path.glob("*.safetensors")}
    assert len(first) > 3
    assert {name for name in first if first[name] != second[name]} == {unfinished}
