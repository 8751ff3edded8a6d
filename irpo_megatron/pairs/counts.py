"""What became of the samples and the pairs of an iteration: nothing is dropped without being counted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sums over problems. They add up:

    problems = problems_paired + problems_all_right + problems_all_wrong + problems_unusable (+ for method `sft`
    problems_without_gold); samples = samples_truncated + samples_empty + winners + losers; and the pairs that were
    built, K for each paired problem, = pairs_too_long + pairs_identical + pairs_over_limit + pairs.
    """

    problems: int = 0
    """Those that were sampled; all of them for method `sft`."""
    problems_paired: int = 0
    problems_all_right: int = 0
    """No loser: such a problem gives no pair."""
    problems_all_wrong: int = 0
    """No winner, not even a gold solution: such a problem gives no pair."""
    problems_unusable: int = 0
    """No sample that is neither truncated nor empty."""
    problems_without_gold: int = 0
    """No gold solution where one was wanted."""
    samples: int = 0
    samples_truncated: int = 0
    """Cut off at the longest completion: neither winner nor loser, as their answer may have been to come."""
    samples_empty: int = 0
    """Ended without any text: nothing to learn from on either side."""
    winners: int = 0
    """Samples; gold solutions are not among them."""
    winners_distinct: int = 0
    """Of each problem's winners, those with different token ids."""
    losers: int = 0
    losers_distinct: int = 0
    gold_winners: int = 0
    """Gold solutions that joined the winners (`sft`: that became rows)."""
    pairs_too_long: int = 0
    pairs_identical: int = 0
    """Both sides say the same: possible only where a gold solution is graded wrong."""
    pairs_over_limit: int = 0
    """Left out to keep to `pairs.max_pairs`."""
    pairs: int = 0
    """In pairs.parquet."""
    pairs_held_out: int = 0
    """Of these, pairs of held-out problems: trained on only when retraining."""

    def __add__(self, other: Counts) -> Counts:
        names = [field.name for field in dataclasses.fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def as_json(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """The counts that are not 0."""
        return ", ".join(f"{name} {value}" for name, value in self.as_json().items() if value)
