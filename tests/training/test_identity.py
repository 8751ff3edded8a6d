"""A reference of another model, of other rows or of other numbers is never taken for this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.pairs import hurtful_pairs

from irpo_megatron.artifacts import MANIFEST, Plan, commit_stage, open_stage, partial_directory, read_json
from irpo_megatron.config import PrecisionConfig
from irpo_megatron.errors import UserError
from irpo_megatron.training.identity import IDENTITY, checkpoint_digest, claim, reference_identity, require_identity
from irpo_megatron.training.rows import unique_rows

STAGE = Plan(stage="train", config={}, inputs={})


def _write_checkpoint(folder: Path) -> Path:
    (folder / "state").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "state" / "__0_0.distcp").write_bytes(b"weights")
    return folder


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """A checkpoint of a committed stage."""
    stage = tmp_path / "run" / "training"
    partial = open_stage(stage, STAGE)
    assert partial is not None
    _write_checkpoint(partial / "checkpoints" / "step-000004")
    _write_checkpoint(partial / "checkpoints" / "step-000008")
    commit_stage(stage)
    return stage / "checkpoints" / "step-000004"


def test_the_manifest_says_what_the_bytes_say(committed: Path, tmp_path: Path) -> None:
    alone = _write_checkpoint(tmp_path / "elsewhere")
    assert checkpoint_digest(committed) == checkpoint_digest(alone)
    assert checkpoint_digest(committed) == checkpoint_digest(committed.with_name("step-000008")), "the same bytes"


def test_files_of_a_committed_stage_are_not_hashed_again(committed: Path) -> None:
    before = checkpoint_digest(committed)
    entries = read_json(committed.parents[1] / MANIFEST)
    entries["outputs"]["checkpoints/step-000004/config.json"]["sha256"] = "another"
    (committed.parents[1] / MANIFEST).write_text(json.dumps(entries))
    assert checkpoint_digest(committed) != before


@pytest.mark.parametrize("change", ["a byte", "a name", "a file more", "a file less"])
def test_any_change_of_the_files_is_another_checkpoint(change: str, tmp_path: Path) -> None:
    checkpoint = _write_checkpoint(tmp_path / "checkpoint")
    before = checkpoint_digest(checkpoint)
    weights = checkpoint / "state" / "__0_0.distcp"
    if change == "a byte":
        weights.write_bytes(b"Weights")
    elif change == "a name":
        weights.rename(weights.with_name("__1_0.distcp"))
    elif change == "a file more":
        weights.with_name("__1_0.distcp").write_bytes(b"")
    else:
        weights.unlink()
    assert checkpoint_digest(checkpoint) != before


def test_a_manifest_of_something_else_above_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"name": "some other software"}')
    inside, outside = _write_checkpoint(tmp_path / "a" / "b"), _write_checkpoint(tmp_path / "c")
    assert checkpoint_digest(inside) == checkpoint_digest(outside)


def test_an_identity_is_that_of_checkpoint_rows_and_numbers(tmp_path: Path) -> None:
    checkpoint, other = _write_checkpoint(tmp_path / "one"), _write_checkpoint(tmp_path / "other")
    (other / "config.json").write_text("{}")
    rows = unique_rows(hurtful_pairs(5, vocabulary=9))
    fp32, bf16 = PrecisionConfig(), PrecisionConfig(dtype="bf16")
    identity = reference_identity(checkpoint, rows, fp32)
    assert identity.keys() == {"checkpoint", "rows", "numerics"}
    assert identity == reference_identity(checkpoint, rows, fp32)
    assert json.loads(json.dumps(identity)) == identity, "it is stored as JSON and compared with what is read"
    for different, changed in (
        ("checkpoint", reference_identity(other, rows, fp32)),
        ("rows", reference_identity(checkpoint, rows[:-1], fp32)),
        ("numerics", reference_identity(checkpoint, rows, bf16)),
    ):
        assert [name for name in identity if identity[name] != changed[name]] == [different]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"checkpoint": "b"}, "of another checkpoint"),
        ({"rows": "b", "numerics": {}}, "of another rows and other numerics"),
    ],
)
def test_what_differs_is_named(changes: dict[str, object], named: str) -> None:
    found = {"checkpoint": "a", "rows": "a", "numerics": {"dtype": "fp32"}}
    require_identity(found, found, Path("reference"))
    for one, other in ((found, found | changes), (found | changes, found)):
        with pytest.raises(UserError) as caught:
            require_identity(one, other, Path("iteration-01/reference"))
        assert caught.value.seen == f"the reference log-probs of iteration-01/reference are {named}"


def test_a_reference_that_says_nothing_of_itself_is_refused() -> None:
    with pytest.raises(UserError, match="of another checkpoint and other rows"):
        require_identity({}, {"checkpoint": "a", "rows": "b"}, Path("reference"))


def test_rows_of_the_same_computation_are_kept(tmp_path: Path) -> None:
    identity = {"checkpoint": "a", "numerics": {"dtype": "fp32"}}
    claim(tmp_path, identity)
    (tmp_path / "reference-00000.parquet").write_bytes(b"rows")
    claim(tmp_path, identity)
    assert (tmp_path / "reference-00000.parquet").read_bytes() == b"rows"
    assert read_json(tmp_path / IDENTITY) == identity


@pytest.mark.parametrize("found", [{"checkpoint": "another"}, None], ids=["of another", "of none: killed half-way"])
def test_rows_of_another_computation_are_removed_and_the_stage_can_still_be_committed(
    found: dict[str, str] | None, tmp_path: Path
) -> None:
    stage = tmp_path / "reference"
    output = open_stage(stage, STAGE)
    assert output is not None
    if found is not None:
        claim(output, found)
    (output / "reference-00000.parquet").write_bytes(b"rows")
    claim(output, {"checkpoint": "a"})
    assert not list(output.glob("*.parquet"))
    assert read_json(output / IDENTITY) == {"checkpoint": "a"}
    assert output == partial_directory(stage)
    commit_stage(stage)
    assert (stage / IDENTITY).is_file()
