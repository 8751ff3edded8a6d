"""Every family at every layout: into live ranks, out of them, into checkpoints and out of those, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ranks import in_world
from support.tiny_model import FAMILIES, make_model

from irpo_megatron.config import ParallelConfig

# In turn: what one layout has written, the next one reads. The first reads what was converted without any ranks.
LAYOUTS = {
    "tp2 x pp2": ParallelConfig(tensor=2, pipeline=2),
    "tp1": ParallelConfig(),
    "pp2 x vpp2": ParallelConfig(pipeline=2, virtual_pipeline=2),
    "tp2": ParallelConfig(tensor=2),
    "pp2": ParallelConfig(pipeline=2),
    "dp2": ParallelConfig(data=2),
    "tp2 + sp x cp2": ParallelConfig(tensor=2, sequence=True, context=2),
}


def unwatched(_total: int) -> Callable[[int], None]:
    return lambda _count: None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of every family; every other one in bf16."""
    root = tmp_path_factory.mktemp("families")
    made = {}
    for number, family in enumerate(FAMILIES):
        made[family] = make_model(root / family, family)
        if number % 2:
            weights = made[family] / "model.safetensors"
            tensors = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
            save_file(tensors, weights, metadata={"format": "pt"})
    return made


def _convert(folders: dict[str, Path], root: Path) -> None:
    from irpo_megatron.conversion.import_stage import convert

    for family, folder in folders.items():
        convert(folder, root / family / "checkpoint", tensor_parallel=2, threads=2, progress=unwatched)


def _at_a_layout(parallel: ParallelConfig, folders: dict[str, Path], before: Path, root: Path) -> None:
    """Straight from the folder, out again; and from the checkpoint that another layout wrote, twice, into its own."""
    import torch.distributed as dist

    from irpo_megatron.conversion import live_ranks
    from irpo_megatron.conversion.into_megatron import load_model
    from irpo_megatron.conversion.out_of_megatron import CheckpointWeights
    from irpo_megatron.conversion.weights import Weights
    from irpo_megatron.engine import checkpoint
    from irpo_megatron.engine.architecture import read_architecture
    from irpo_megatron.engine.model import build_model
    from irpo_megatron.engine.parallel import parallel_world
    from irpo_megatron.model_folder import open_model_folder

    with parallel_world(parallel, threads=1) as place:
        for family, path in folders.items():
            folder = open_model_folder(path)
            architecture = read_architecture(folder.config)
            weights = Weights(folder, architecture)
            direct, sliced, resharded = (build_model(architecture, place) for _ in range(3))
            load_model(direct, weights)
            load_model(sliced, CheckpointWeights(before / family / "checkpoint", architecture))
            checkpoint.load_model(before / family / "checkpoint", resharded)
            for others in (sliced, resharded):
                for mine, other in zip(direct, others, strict=True):
                    for (name, left), right in zip(mine.named_parameters(), other.parameters(), strict=True):
                        assert torch.equal(left, right), (family, name)
            (root / family / "live").mkdir(parents=True, exist_ok=True)
            dist.barrier()
            with mock.patch.object(live_ranks, "plan_files", partial(live_ranks.plan_files, file_bytes=9_000)):
                live_ranks.write_live_weights(root / family / "live", direct, architecture, place, dtype=weights.dtype)
            writer = checkpoint.CheckpointWriter(asynchronous=False)
            writer.save_model(root / family / "checkpoint", resharded, folder.config)


def test_what_one_layout_writes_another_reads(folders: dict[str, Path], tmp_path: Path) -> None:
    before = tmp_path / "without ranks"
    in_world(1, _convert, folders, before)
    _assert_same(folders, before, live=False)
    for name, parallel in LAYOUTS.items():
        in_world(parallel.world_size, _at_a_layout, parallel, folders, before, tmp_path / name)
        before = tmp_path / name
        _assert_same(folders, before, live=True)


def _assert_same(folders: dict[str, Path], root: Path, *, live: bool) -> None:
    from irpo_megatron.conversion.export_stage import convert

    for family, folder in folders.items():
        original = load_file(folder / "model.safetensors")
        back = root / family / "back"
        back.mkdir()
        dtype = "bf16" if next(iter(original.values())).dtype == torch.bfloat16 else "fp32"
        convert(root / family / "checkpoint", back, base=folder, dtype=dtype, threads=1, progress=unwatched)
        for written in (back, root / family / "live") if live else (back,):
            files = sorted(written.glob("*.safetensors"))
            assert (len(files) > 8) == (written.name == "live")
            tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
            assert tensors.keys() == original.keys(), (root.name, family)
            for name, tensor in original.items():
                assert tensors[name].dtype == tensor.dtype
                assert torch.equal(tensors[name], tensor), (root.name, family, written.name, name)
