"""Which reference log-probs are these: of what checkpoint, of which rows, computed with what numbers.

A reference of another model does not crash: it quietly trains towards something else. So its identity is stored with
it, checked whenever training starts, and stored again with every resume point.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from irpo_megatron.artifacts import MANIFEST, Json, file_digest, json_digest, read_json, write_json
from irpo_megatron.config import PrecisionConfig
from irpo_megatron.engine.precision import numerics_key
from irpo_megatron.errors import UserError
from irpo_megatron.training.rows import CompletionRow

IDENTITY = "identity.json"


def reference_identity(checkpoint: Path, rows: Sequence[CompletionRow], precision: PrecisionConfig) -> Json:
    """What a reference pass is a function of.

    Args:
        checkpoint: Megatron checkpoint of the reference.
        rows: The unique rows that it scores.
    """
    return {
        "checkpoint": checkpoint_digest(checkpoint),
        "rows": json_digest([row.row_id for row in rows]),
        "numerics": numerics_key(precision),
    }


def checkpoint_digest(checkpoint: Path) -> str:
    """sha256 over a checkpoint's files: as the manifest of the stage that wrote them has it, else over their bytes."""
    stage = next((folder for folder in checkpoint.parents if (folder / MANIFEST).is_file()), None)
    outputs = read_json(stage / MANIFEST).get("outputs", {}) if stage is not None else {}
    digests = []
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        entry = outputs.get(str(file.relative_to(stage))) if stage is not None else None
        digests.append([str(file.relative_to(checkpoint)), entry["sha256"] if entry else file_digest(file)])
    return json_digest(digests)


def claim(output: Path, identity: Json) -> None:
    """Say what the rows in `output` belong to; rows of anything else that an earlier attempt left are removed."""
    path = output / IDENTITY
    if path.is_file() and read_json(path) == identity:
        return
    # The identity first: rows without one belong to nothing, should this be killed half-way.
    path.unlink(missing_ok=True)
    for shard in output.glob("*.parquet"):
        shard.unlink()
    write_json(path, identity)


def require_identity(found: Json, expected: Json, where: Path) -> None:
    """Refuse a reference that belongs to something else.

    Raises:
        UserError: names what differs.
    """
    different = [name for name in expected if found.get(name) != expected[name]]
    if different:
        raise UserError(
            f"the reference log-probs of {where} are of another {' and other '.join(different)}",
            "policy and reference start from the same checkpoint, on the same rows, computed with the same numbers",
            "delete the reference and training directories of this iteration so that both are computed again",
        )
