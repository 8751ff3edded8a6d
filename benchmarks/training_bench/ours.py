"""The worker of this project: `python -m benchmarks.training_bench.ours SETTINGS.json`.

The training stage itself runs, on files, as the loop would run it. Its record of metrics is the one thing replaced:
after writing a step's line it waits.
"""

from __future__ import annotations

from typing import Any

from benchmarks.training_bench.gate import Gate, read_settings
from irpo_megatron.requests import TrainRequest
from irpo_megatron.training import stage
from irpo_megatron.training.metrics import MetricsLog


def main() -> None:
    settings = read_settings()
    request = TrainRequest.model_validate(settings["request"])
    gate = Gate(request.launch.threads)

    class GatedLog(MetricsLog):
        """Waits when a step is done and its metrics are written."""

        def write(self, step: int, result: Any, *args: Any, **kwargs: Any) -> None:
            super().write(step, result, *args, **kwargs)
            if step == 1:
                names = ("loss", "dpo", "margin", "chosen_log_prob", "rejected_log_prob")
                gate.first_step = {name: result.means[name] for name in names}
                gate.first_step["gradient_norm"] = result.gradient_norm
            gate.between_steps()

    stage.MetricsLog = GatedLog  # type: ignore[misc]
    stage.run(request)


if __name__ == "__main__":
    main()
