"""Peak memory of a training step of 8,192 tokens with a vocabulary of 1,024 and of 131,072, the model's own aside.

    .venv/bin/python -m benchmarks.vocabulary_memory

The model's own is its weights, their gradients and AdamW's two moments. Were all logits in memory at once, the larger
vocabulary would take 4 GiB more for each copy of them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.training_bench.random_pairs import random_inputs
from benchmarks.training_bench.stages import base_request
from irpo_megatron.artifacts import write_json
from irpo_megatron.config import RandomModel, RandomTokenizer
from irpo_megatron.model_folder import open_model_folder, read_tensor_entries

VOCABULARIES = (1_024, 131_072)
PAIRS, PROMPT, COMPLETION = 4, 48, 1_000  # 4 x (48 + 2 x 1,000) = 8,192 tokens, of which 8,000 reach the output matrix
SHAPE = RandomModel(
    tokenizer=RandomTokenizer(kind="characters"),
    hidden_size=256,
    layers=4,
    heads=4,
    kv_heads=4,
    ffn_size=704,
    context=2_048,
)
BYTES_OF_THE_MODEL_A_PARAMETER = 4 + 4 + 8


def main() -> None:
    beyond = []
    print("| vocabulary | peak, MiB | the model's own | beyond it |\n|---|---|---|---|")
    for vocabulary in VOCABULARIES:
        with tempfile.TemporaryDirectory() as folder:
            peak, own = measure(Path(folder), vocabulary)
        beyond.append(peak - own)
        print(
            f"| {vocabulary:,} | {peak / 2**20:,.0f} | {own / 2**20:,.0f} | {(peak - own) / 2**20:,.0f} |", flush=True
        )
    print(f"\n{beyond[1] / beyond[0]:.2f} times as much beyond the model, imports included")


def measure(folder: Path, vocabulary: int) -> tuple[int, int]:
    """Peak of the training process in bytes when its second step is done, and what the model's own take of it."""
    inputs = random_inputs(folder, SHAPE, vocabulary=vocabulary, lengths=[(PROMPT, COMPLETION, COMPLETION)] * PAIRS)
    parameters = sum(
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for path in set(open_model_folder(inputs.model_folder).weight_files.values())
        for entry in read_tensor_entries(path).values()
    )  # bytes of numbers of four
    training = {"global_batch_size": PAIRS, "micro_batch_tokens": 8_192}
    request = base_request(inputs, folder, threads=2, dtype="fp32", training=training)
    request.output.mkdir()
    path = folder / "training.request.json"
    write_json(path, request.model_dump(mode="json"))
    command = [sys.executable, "-m", "irpo_megatron.process", "irpo_megatron.training.stage", str(path)]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        metrics = request.output / "metrics.jsonl"
        while not metrics.is_file() or len(metrics.read_bytes().splitlines()) < 2:
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text()[-2000:])
            time.sleep(0.2)
        peak = peak_of(process.pid)
        process.kill()
    return peak, parameters // 4 * BYTES_OF_THE_MODEL_A_PARAMETER


def peak_of(process: int) -> int:
    """Peak of a running process's resident memory, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
