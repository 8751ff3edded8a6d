"""The worker of TRL's DPOTrainer, in an environment of its own.

    .venv-trl/bin/python -m benchmarks.training_bench.trl_side SETTINGS.json

TRL's own loop takes the steps; a callback stands between them. It tokenises the pairs itself, from their texts: the
worker refuses to start where its tokens are not those of the pairs.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.training_bench.gate import Gate, read_settings

ENDLESS = 1_000_000
TEXTS = ("prompt", "chosen", "rejected")


class GateCallback(TrainerCallback):
    """Waits at the beginning of a step, when the metrics of the last one are logged."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:
            self._gate.between_steps()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if state.global_step == 1:
            self._gate.first_step = {
                "loss": logs["loss"],
                "margin": logs["rewards/margins"],
                "chosen_log_prob": logs["logps/chosen"],
                "rejected_log_prob": logs["logps/rejected"],
                "gradient_norm": logs["grad_norm"],
            }


def main() -> None:
    settings = read_settings()
    gate = Gate(settings["threads"])
    rows = pq.read_table(settings["pairs"]).to_pylist()
    trainer = DPOTrainer(
        model=settings["model"],
        args=config_of(settings),
        train_dataset=Dataset.from_list([{name: row[name] for name in TEXTS} for row in rows]),
        callbacks=[GateCallback(gate)],
    )
    require_same_tokens(trainer.train_dataset, rows)
    trainer.train()


def config_of(settings: dict[str, Any]) -> DPOConfig:
    """The same training as ours. What is not named here is TRL's default (the optimizer: torch's fused AdamW)."""
    on_cuda = torch.cuda.is_available()
    return DPOConfig(
        output_dir=settings["output"],
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, settings["alpha"]],
        beta=settings["beta"],
        precompute_ref_log_probs=True,
        max_length=settings["max_length"],
        per_device_train_batch_size=settings["micro"],
        gradient_accumulation_steps=settings["global_batch_size"] // settings["micro"],
        gradient_checkpointing=False,
        bf16=on_cuda,
        use_cpu=not on_cuda,
        dataloader_pin_memory=on_cuda,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=settings["weight_decay"],
        adam_beta1=settings["adam_beta1"],
        adam_beta2=settings["adam_beta2"],
        adam_epsilon=settings["adam_epsilon"],
        max_grad_norm=settings["clip_gradient"],
        train_sampling_strategy="sequential",
        max_steps=ENDLESS,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def require_same_tokens(dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    """Refuse to measure another computation than ours."""
    assert len(dataset) == len(rows), f"TRL kept {len(dataset)} of {len(rows)} pairs"
    for ours, theirs in zip(rows, dataset, strict=True):
        for name in [f"{text}_ids" for text in TEXTS]:
            assert list(ours[name]) == list(theirs[name]), f"pair {ours['pair_id']}: TRL has other {name}"


if __name__ == "__main__":
    main()
