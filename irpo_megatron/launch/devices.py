"""The GPUs of this machine, dealt out to processes that each want some of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from irpo_megatron.errors import UserError


def visible_devices(environment: Mapping[str, str] = os.environ, *, dev: Path = Path("/dev")) -> list[str]:
    """The CUDA devices that a child of this process would see, as CUDA_VISIBLE_DEVICES names them.

    Looked up without CUDA: the driver imports nothing that could hold a GPU.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(len(list(dev.glob("nvidia[0-9]*"))))]
    devices = [name.strip() for name in named.split(",") if name.strip()]
    return devices[: devices.index("-1")] if "-1" in devices else devices  # CUDA reads no further


def share_devices(devices: list[str], *, workers: int, each: int) -> list[dict[str, str]]:
    """The variables by which each worker sees `each` devices of its own; none where there are no devices to deal out.

    Raises:
        UserError: there are too few.
    """
    if not devices or each == 0:
        return [{}] * workers
    if workers * each > len(devices):
        raise UserError(
            f"generation.workers = {workers} of {each} GPUs each, and this machine shows {len(devices)} GPUs",
            "each worker has an engine on GPUs of its own",
            f"set generation.workers to at most {len(devices) // each}"
            if each <= len(devices)
            else "lower generation.tensorrt_llm.tensor_parallel or pipeline_parallel, or use a larger machine",
        )
    groups = [devices[number * each : (number + 1) * each] for number in range(workers)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
