"""One rank of a training whose memory and time are measured: what torchrun starts.

    torchrun ... -m benchmarks.training_bench.measured_rank REQUEST.json

The training stage itself runs. Its trainer is the one thing replaced: after each step it takes down the step's seconds
and the highest that the process's memory has been. Where training ends, `rank-N.json` lies beside the request.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.training_bench.gate import status_mib
from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.requests import TrainRequest
from irpo_megatron.training import stage
from irpo_megatron.training.trainer import Trainer


def main() -> None:
    path = Path(sys.argv[1])
    figures: dict[str, Any] = {"after_imports_mib": status_mib("VmRSS"), "seconds": []}

    class MeasuredTrainer(Trainer):
        def step(self, batch: Any) -> Any:
            started = time.perf_counter()
            result = super().step(batch)
            figures["seconds"].append(time.perf_counter() - started)
            figures["peak_mib"] = status_mib("VmHWM")
            return result

        def save_candidate(self, step: int) -> None:
            """Nothing: a checkpoint is no part of a step."""

    stage.Trainer = MeasuredTrainer  # type: ignore[misc]
    stage.run(TrainRequest.model_validate(read_json(path)))
    write_json(path.with_name(f"rank-{os.environ.get('RANK', '0')}.json"), figures)


if __name__ == "__main__":
    main()
