"""What makes two rows the same computation, so that the reference pass does it once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from irpo_megatron.records import Pair


@dataclass(frozen=True, kw_only=True)
class CompletionRow:
    """One prompt with one completion."""

    row_id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


def row_id(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
    """A digest of the token ids and of where the completion begins."""
    digest = hashlib.sha256(len(prompt_ids).to_bytes(8, "little"))
    digest.update(np.array([*prompt_ids, *completion_ids], dtype="<i4").tobytes())
    return digest.hexdigest()[:32]


def unique_rows(pairs: Iterable[Pair]) -> list[CompletionRow]:
    """Every chosen and rejected completion once.

    Short prompts first, the completions of a prompt together: rows of like length share a micro-batch, and those of
    one prompt can share its computation.
    """
    rows = {}
    for pair in pairs:
        for completion in (pair.chosen_ids, pair.rejected_ids):
            identity = row_id(pair.prompt_ids, completion)
            rows[identity] = CompletionRow(row_id=identity, prompt_ids=pair.prompt_ids, completion_ids=completion)
    return sorted(rows.values(), key=lambda row: (len(row.prompt_ids), row.prompt_ids, row.length, row.row_id))
