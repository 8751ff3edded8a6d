"""Conversion of a random Llama of the 7B shape, both ways, against `cp -r` of the same bytes: time and peak memory.

    .venv/bin/python -m benchmarks.conversion --folder /somewhere/with/60/GB

Each turn copies the folder, converts it to Megatron's format and back, and compares the end with the beginning bit by
bit. Every time is until the bytes are on the disk; what is read is not in memory beforehand. Memory is the resident
set's peak, mapped files included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="new: model and conversions go there")
    parser.add_argument("--size", choices=("100m", "1b", "7b", "70b-two-layers"), default="7b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    arguments = parser.parse_args()
    root: Path = arguments.folder
    original, copy, checkpoint, back = (root / name for name in ("original", "copy", "megatron", "back"))
    # In another process: the peak of a child begins with what its parent has in memory.
    make = [sys.executable, "-m", "benchmarks.random_weights", str(original), "--size", arguments.size]
    subprocess.run(make, check=True)
    gigabytes = sum(path.stat().st_size for path in original.iterdir()) / 1e9
    options = [f"--threads={arguments.threads}"]
    there = ["hf-to-megatron", original, checkpoint, f"--tensor-parallel={arguments.tensor_parallel}", *options]
    commands: dict[str, list[Any]] = {
        "cp -r": ["cp", "-r", original, copy],
        "Hugging Face -> Megatron": [sys.executable, "-m", "irpo_megatron.cli", "convert", *there],
        "Megatron -> Hugging Face": [
            *(sys.executable, "-m", "irpo_megatron.cli", "convert"),
            *("megatron-to-hf", checkpoint, original, back, *options),
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, float] = dict.fromkeys(commands, 0.0)
    for number in range(1, arguments.rounds + 1):
        for name, command in commands.items():
            forget(root)
            took, peak = measure([str(word) for word in command])
            seconds[name].append(took)
            peaks[name] = max(peaks[name], peak)
            print(f"round {number}: {name}: {took:.1f} s, {gigabytes / took:.2f} GB/s, {peak:.2f} GB", flush=True)
        same = ["convert", "verify", str(original), str(back)]
        subprocess.run([sys.executable, "-m", "irpo_megatron.cli", *same], check=True)
        for made in (copy, checkpoint, back):
            shutil.rmtree(made)
    copied = statistics.median(seconds["cp -r"])
    print(f"\n{gigabytes:.1f} GB\n\n| | s | GB/s | of the speed of cp -r | peak memory, GB |\n|---|---|---|---|---|")
    for name, all_of_them in seconds.items():
        took = statistics.median(all_of_them)
        print(f"| {name} | {took:.1f} | {gigabytes / took:.2f} | {copied / took:.2f} | {peaks[name]:.2f} |")
    shutil.rmtree(root)


def forget(folder: Path) -> None:
    """Let nothing in a folder be in memory, as far as an ordinary user can."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds until the output is on the disk, and the peak of the process's memory in GB."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    os.sync()
    return time.monotonic() - started, usage.ru_maxrss / 1e6


if __name__ == "__main__":
    main()
