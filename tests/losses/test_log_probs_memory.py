"""Log-probs of 8,192 tokens take the memory that logits are given, whatever the vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TOKENS, HIDDEN = 8192, 256
LOGITS_BYTES = 128 * 2**20
HIDDEN_BYTES = TOKENS * HIDDEN * 4

# A fresh process, so that no memory freed by other tests is taken again unnoticed.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from irpo_megatron.losses.log_probs import token_log_probs

tokens, hidden_size, vocabulary, logits_bytes, has_main_grad = json.loads(sys.argv[1])
torch.set_num_threads(1)

def peak():
    return next(
        int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )

def log_probs(hidden, weight, targets):
    group = torch.distributed.ProcessGroup(0, 1)
    values = token_log_probs(
        hidden, weight, targets, vocabulary=len(weight), group=group, logits_bytes=logits_bytes
    )
    values.sum().backward()

# What torch and its matrix product set up at their first use.
log_probs(torch.ones(64, 8, requires_grad=True), torch.ones(64, 8, requires_grad=True), torch.zeros(64).long())
hidden = torch.randn(tokens, hidden_size).requires_grad_()
weight = (torch.randn(vocabulary, hidden_size) / 16).requires_grad_()
targets = torch.randint(vocabulary, (tokens,))
if has_main_grad:
    weight.main_grad = torch.ones_like(weight)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is in use
before = peak()
log_probs(hidden, weight, targets)
print(peak() - before)
"""


def _extra_bytes(vocabulary: int, *, has_main_grad: bool) -> int:
    """Memory that forward and backward take at their peak beyond inputs and the gradient of the weight."""
    arguments = json.dumps([TOKENS, HIDDEN, vocabulary, LOGITS_BYTES, has_main_grad])
    result = subprocess.run([sys.executable, "-c", SCRIPT, arguments], check=True, capture_output=True, text=True)
    return int(result.stdout) - (0 if has_main_grad else vocabulary * HIDDEN * 4)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(("vocabulary", "has_main_grad"), [(131_072, True), (1_024, True), (1_024, False)])
def test_memory_is_that_of_one_chunk_and_of_the_hidden_states(vocabulary: int, has_main_grad: bool) -> None:
    extra = _extra_bytes(vocabulary, has_main_grad=has_main_grad)
    assert extra < LOGITS_BYTES + 4 * HIDDEN_BYTES, f"{extra / 2**20:.0f} MB"
    # All logits of the larger vocabulary would take 4,096 MB.
    assert extra > HIDDEN_BYTES, f"{extra / 2**20:.0f} MB: less than the gradient of the hidden states was measured"
