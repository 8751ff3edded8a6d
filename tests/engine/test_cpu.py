"""The CPU platform answers Megatron-Core, and leaves everybody else's torch alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

SCRIPT = """
import torch
factories = {name: getattr(torch, name) for name in ("tensor", "zeros", "empty", "ones")}
from irpo_megatron.engine.cpu import answer_for_cuda
answer_for_cuda()
answer_for_cuda()
from megatron.core import utils
from megatron.core.optimizer import clip_grads, optimizer
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import get_cuda_rng_tracker
for module in (clip_grads, optimizer, schedules, utils):
    made = module.torch.zeros(2, device="cuda")
    assert made.device.type == "cpu", module
    assert module.torch.tensor([1.0], device="cuda").tolist() == [1.0]
    assert module.torch.nn is torch.nn
assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
assert torch.zeros(1).type(torch.float64).dtype == torch.float64
assert torch.zeros(1).cuda().device.type == "cpu"
assert torch.cuda.current_device() == torch.device("cpu")
with get_cuda_rng_tracker().fork():
    pass
assert {name: getattr(torch, name) for name in factories} == factories
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is never active where CUDA is present")
def test_megatrons_questions_are_answered_and_torch_is_left_alone() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], check=True)


def test_it_refuses_to_run_where_cuda_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    from irpo_megatron.engine.cpu import answer_for_cuda

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(AssertionError, match="never be active where CUDA is present"):
        answer_for_cuda()
