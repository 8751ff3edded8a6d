"""SIGTERM to the command, in a stage that does not listen: finished shards are kept, and the same command goes on."""

from __future__ import annotations

import signal
from pathlib import Path

from support.command import LOOP, irpo, start_irpo
from support.obedient_driver import wait_for

from irpo_megatron.artifacts import partial_directory


def test_a_stopped_command_goes_on(runs_with_base: Path) -> None:
    command = ("generate", LOOP, f"runs={runs_with_base}", "generation.shard_prompts=1")
    generations = runs_with_base / "loop" / "iteration-01" / "generations"
    shard = "generations-00000.parquet"
    running = start_irpo(*command)
    wait_for((partial_directory(generations) / shard).exists, driver=running)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate()
    assert running.returncode == 75
    message = "iteration-01-generate was stopped by SIGTERM; the same command goes on from here"
    assert errors.splitlines()[-1] == message
    assert not generations.exists()
    before = (partial_directory(generations) / shard).stat()

    finished = irpo(*command)
    assert finished.status == 0, finished.errors
    after = (generations / shard).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(list(generations.glob("generations-*.parquet"))) == 30
    assert not list(runs_with_base.rglob("*.partial"))
