"""The accuracies that the paper reports (arXiv 2404.19733 v3, section 3), all of Llama-2-70B-Chat, in percent."""

from __future__ import annotations

from dataclasses import dataclass

PAPER_MODEL = "Llama-2-70B-Chat"
CITATION = "Pang et al., Iterative Reasoning Preference Optimization, arXiv 2404.19733 v3"


@dataclass(frozen=True, kw_only=True)
class PaperResults:
    """One task of the paper."""

    accuracy: dict[int, float]
    """Greedy accuracy of IRPO by iteration; 0 is the model before any training, prompted for a chain of thought."""
    majority: dict[int, float]
    """maj@32 by iteration, where the paper gives it."""
    baselines: dict[str, float]
    """Greedy accuracy of the other methods."""


_PAPER = {
    "gsm8k": PaperResults(
        accuracy={0: 55.6, 1: 73.1, 2: 78.0, 3: 81.1, 4: 81.6},
        majority={0: 70.7, 3: 88.2, 4: 88.7},
        baselines={
            "SFT on gold chains of thought": 63.5,
            "STaR (SFT on chosen), one iteration": 65.2,
            "STaR (SFT on chosen), one iteration with twice the data": 66.9,
            "DPO": 61.8,
            "DPO from SFT on chosen": 60.3,
            "IRPO, one iteration with twice the data": 74.8,
        },
    ),
    "arc": PaperResults(
        accuracy={0: 77.8, 1: 84.8, 2: 86.2, 3: 86.7},
        majority={0: 82.9, 3: 87.9},
        baselines={"SFT on chosen": 79.8, "DPO": 82.8, "DPO from SFT on chosen": 83.5},
    ),
    "math": PaperResults(
        accuracy={0: 12.5, 1: 17.7, 2: 19.9, 3: 20.8},
        majority={0: 18.8, 3: 29.1},
        baselines={"SFT on chosen": 16.8, "DPO": 12.4, "DPO from SFT on chosen": 10.5},
    ),
}


def paper_results(task: str) -> PaperResults | None:
    """What the paper reports for a task; None for a task that it does not have."""
    return _PAPER.get(task)
