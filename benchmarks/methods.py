"""IRPO, plain DPO and STaR over three seeds on the demo task: the table of docs/experiments.md.

make experiments        (goes on where it was left: finished runs are read, not repeated)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from irpo_megatron.config_file import load_config

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "examples" / "arithmetic_cpu.yaml"
METHODS: dict[str, list[str]] = {"IRPO": [], "DPO (alpha = 0)": ["loss.alpha=0"], "STaR": ["method=star"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    arguments = parser.parse_args()
    curves = {
        method: [accuracies(arguments.runs, [f"seed={seed}", *overrides]) for seed in arguments.seeds]
        for method, overrides in METHODS.items()
    }
    print("| method | base | iteration 1 | iteration 2 | iteration 3 |")
    print("|---|---|---|---|---|")
    for method, of_seeds in curves.items():
        points = zip(*of_seeds, strict=True)
        cells = [f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" for values in points]
        print(f"| {method} | " + " | ".join(cells) + " |")


def accuracies(runs: Path, overrides: list[str]) -> list[float]:
    """Greedy accuracy in percent, by iteration, of one run."""
    overrides = [f"runs={runs.resolve()}", *overrides]
    command = [sys.executable, "-m", "irpo_megatron.cli", "run", str(CONFIG), *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((load_config(CONFIG, overrides).run_dir / "results.json").read_text(encoding="utf-8"))
    return [100 * entry["accuracy"] for entry in results["iterations"]]


if __name__ == "__main__":
    main()
