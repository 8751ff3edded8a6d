"""Functions in several Gloo processes."""

from __future__ import annotations

import os
import socket
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


def in_world(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """As `on_ranks`, for functions that join the process groups themselves, as torchrun's processes do."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        torch.multiprocessing.start_processes(
            _joining, args=(world_size, port, folder, function, arguments), nprocs=world_size, start_method="fork"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(*arguments)` in a process of its own: there it may join process groups and redirect torch."""
    return in_world(1, function, *arguments)[0]


def _joining(
    rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    except Exception as error:
        raise AssertionError(f"rank {rank}:\n{traceback.format_exc()}") from error


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
