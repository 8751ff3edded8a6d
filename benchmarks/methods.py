"""IRPO, plain DPO and STaR over three seeds on the demo task: the table of docs/experiments.md.

make experiments        (resumes: finished runs are read, not repeated)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
METHODS = {"IRPO": [], "DPO (alpha = 0)": ["loss.alpha=0"], "STaR": ["method=star"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    arguments = parser.parse_args()
    print("| method | base | " + " | ".join(f"iteration {t}" for t in (1, 2, 3)) + " |")
    print("|---|" + "---|" * 4)
    for method, overrides in METHODS.items():
        curves = [accuracies(arguments.runs, [f"seed={seed}", *overrides]) for seed in arguments.seeds]
        cells = [
            f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" for values in zip(*curves, strict=True)
        ]
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


def accuracies(runs: Path, overrides: list[str]) -> list[float]:
    """Greedy accuracy in percent, by iteration, of one run."""
    command = [
        sys.executable,
        "-m",
        "irpo_megatron.cli",
        "run",
        "examples/arithmetic_cpu.yaml",
        f"runs={runs}",
        *overrides,
    ]
    finished = subprocess.run(
        command, cwd=ROOT, check=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    report = Path(finished.stderr.rsplit("report: ", 1)[1].strip())
    results = json.loads((report.parent / "results.json").read_text(encoding="utf-8"))
    return [100 * entry["accuracy"] for entry in results["iterations"]]


if __name__ == "__main__":
    main()
