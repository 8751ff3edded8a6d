"""Numbers from verdicts: intervals, votes, and the chance of one right answer among several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927): honest near 0 and 1 and for small n, where +-z*s is not.

    With p = successes / n and z the normal quantile:
    (p + z^2/2n +- z * sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Raises:
        ValueError: n is 0, or successes are not between 0 and n.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Without a success, or without a failure, one end is 0 or 1 exactly; floats would miss it by a digit.
    low = (centre - half) / scale if successes > 0 else 0.0
    high = (centre + half) / scale if successes < n else 1.0
    return low, high


def majority_correct(votes: Sequence[tuple[str | None, bool]]) -> bool:
    """maj@k of one problem (self-consistency: Wang et al. 2022): whether the most frequent answer is right.

    Args:
        votes: (answer in canonical form, verdict) of each sample in order. None, an answer that is missing or cannot
            be read, does not vote; without any vote the problem is wrong. The verdict on an answer is that of the
            first sample which gave it; a tie goes to the answer that was given first.
    """
    counts: dict[str, int] = {}
    verdicts: dict[str, bool] = {}
    for answer, correct in votes:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
            verdicts.setdefault(answer, correct)
    if not counts:
        return False
    return verdicts[max(counts, key=lambda answer: counts[answer])]  # max keeps the first of equals


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k samples drawn without replacement from n, of which c are right, hold a right one.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, equation 1). A sample without an answer, or that
    the grader gave up on, is one of the n - c wrong ones.

    Raises:
        ValueError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} right among {n} samples")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
