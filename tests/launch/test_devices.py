"""GPUs dealt out to workers, on a machine that need not have any."""

from __future__ import annotations

from pathlib import Path

import pytest

from irpo_megatron.errors import UserError
from irpo_megatron.launch.devices import share_devices, visible_devices


@pytest.mark.parametrize(
    ("named", "devices"),
    [
        ("0,1,2", ["0", "1", "2"]),
        (" 4 , 6", ["4", "6"]),
        ("GPU-8932f937,MIG-d72c", ["GPU-8932f937", "MIG-d72c"]),
        ("", []),
        ("-1", []),
        ("3,-1,5", ["3"]),
    ],
)
def test_what_the_environment_names(tmp_path: Path, named: str, devices: list[str]) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": named}, dev=tmp_path) == devices


def test_what_the_machine_has(tmp_path: Path) -> None:
    assert visible_devices({}, dev=tmp_path) == []
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_devices({}, dev=tmp_path) == ["0", "1"]


def test_each_worker_has_its_own() -> None:
    shares = share_devices(["4", "5", "6", "7", "a"], workers=2, each=2)
    assert shares == [{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]


@pytest.mark.parametrize(("devices", "each"), [([], 2), (["0"], 0)])
def test_nothing_to_deal_out(devices: list[str], each: int) -> None:
    assert share_devices(devices, workers=3, each=each) == [{}, {}, {}]


@pytest.mark.parametrize(
    ("workers", "each", "remedy"), [(3, 2, "at most 2"), (5, 1, "at most 4"), (1, 8, "tensor_parallel")]
)
def test_too_few(workers: int, each: int, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        share_devices(["0", "1", "2", "3"], workers=workers, each=each)
    assert caught.value.seen == (f"generation.workers = {workers} of {each} GPUs each, and this machine shows 4 GPUs")
    assert remedy in caught.value.remedy
