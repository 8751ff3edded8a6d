"""Functions in several Gloo processes."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` on every rank of a Gloo world; its results, by rank.

    `function` must be importable by name. An exception on any rank fails the test with that rank's traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank, args=(world_size, folder, function, arguments), nprocs=world_size, start_method="fork"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    except Exception as error:
        raise AssertionError(f"rank {rank}:\n{traceback.format_exc()}") from error
    finally:
        dist.destroy_process_group()
