"""Checkpoints read and written a box at a time, against what Megatron-Core itself reads and writes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ranks import in_child

from irpo_megatron.artifacts import remembered_digest
from irpo_megatron.engine.checkpoint_files import Box, CheckpointFiles, TensorToWrite, write_tensors
from irpo_megatron.errors import UserError

WHOLE = torch.arange(3 * 7 * 5).view(3, 7, 5).bfloat16()


def boxes(rows: int, columns: int) -> list[Box]:
    """Boxes of so many rows and columns that cover each layer of `WHOLE`."""
    return [
        ((layer, row, column), (1, min(rows, 7 - row), min(columns, 5 - column)))
        for layer in range(3)
        for row in range(0, 7, rows)
        for column in range(0, 5, columns)
    ]


def take(box: Box) -> torch.Tensor:
    return WHOLE[tuple(slice(start, start + size) for start, size in zip(*box, strict=True))].clone()


def write(state: Path, cut: list[Box], *, threads: int = 2) -> CheckpointFiles:
    norm = torch.linspace(0, 1, 6)
    write_tensors(
        state,
        {
            "stack": TensorToWrite((3, 7, 5), torch.bfloat16, cut, take),
            "norm": TensorToWrite((6,), torch.float32, [((0,), (6,))], lambda _box: norm),
        },
        threads=threads,
    )
    return CheckpointFiles(state)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 5),
    start=st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 4)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 5)),
)
def test_any_box_is_read_from_any_boxes(
    rows: int,
    columns: int,
    start: tuple[int, int, int],
    size: tuple[int, int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    files = write(tmp_path_factory.mktemp("checkpoint") / "state", boxes(rows, columns))
    box = (start, tuple(min(n, total - s) for n, s, total in zip(size, start, WHOLE.shape, strict=True)))
    assert torch.equal(files.read("stack", box), take(box))


def test_headers_and_digests(tmp_path: Path) -> None:
    files = write(tmp_path / "state", boxes(4, 5))
    assert files.shapes == {"stack": (3, 7, 5), "norm": (6,)}
    assert files.dtypes == {"stack": torch.bfloat16, "norm": torch.float32}
    assert files.boxes("stack") == set(boxes(4, 5))
    written = list((tmp_path / "state").glob("*.distcp"))
    assert len(written) == 2
    for path in written:
        assert remembered_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def _load_with_megatron(state: Path) -> tuple[torch.Tensor, torch.Tensor]:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    from irpo_megatron.config import ParallelConfig
    from irpo_megatron.engine.parallel import parallel_world

    with parallel_world(ParallelConfig(), threads=1):
        wanted = {
            layer: ShardedTensor.from_rank_offsets("stack", torch.zeros(7, 5), (0, layer, 3), prepend_axis_num=1)
            for layer in range(3)
        }
        norm = ShardedTensor.from_rank_offsets("norm", torch.zeros(6))
        loaded = dist_checkpointing.load({"stack": wanted, "norm": norm}, str(state))
    return torch.stack([loaded["stack"][layer] for layer in range(3)]), loaded["norm"]


def test_megatron_core_reads_what_is_written_in_another_type_too(tmp_path: Path) -> None:
    write(tmp_path / "state", boxes(4, 2))
    stack, norm = in_child(_load_with_megatron, tmp_path / "state")
    assert stack.dtype == torch.float32
    assert torch.equal(stack, WHOLE.float())
    assert torch.equal(norm, torch.linspace(0, 1, 6))


def test_boxes_that_leave_a_gap_are_refused_when_they_are_read(tmp_path: Path) -> None:
    files = write(tmp_path / "state", boxes(4, 5)[:-1])
    assert torch.equal(files.read("stack", ((0, 0, 0), (2, 7, 5))), WHOLE[:2])
    with pytest.raises(UserError, match="holds 20 of the 35 numbers of stack"):
        files.read("stack", ((2, 0, 0), (1, 7, 5)))


@pytest.mark.parametrize("damage", ["cut off", "garbled", "missing"])
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    files = write(tmp_path / "state", boxes(7, 5), threads=1)
    (path,) = (tmp_path / "state").glob("*.distcp")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:100] if damage == "cut off" else content[:50] + bytes(len(content) - 50))
    with pytest.raises(UserError, match=r"__0_0\.distcp, stack at \(0, 0, 0\)"):
        files.read("stack", ((0, 0, 0), (1, 7, 5)))


def test_a_metadata_that_names_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    import pickle

    write(tmp_path / "state", boxes(7, 5))
    path = tmp_path / "state" / ".metadata"
    metadata = pickle.loads(path.read_bytes())  # noqa: S301 - our own
    for stored in metadata.storage_data.values():
        object.__setattr__(stored, "relative_path", "../elsewhere.distcp")
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=r"names the file \.\./elsewhere\.distcp"):
        CheckpointFiles(tmp_path / "state")
