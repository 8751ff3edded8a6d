"""The gradient of the output matrix under Megatron-Core's data-parallel wrapper, tied to the embedding and not.

Megatron-Core's wrapper sums gradients in a buffer of its own, through hooks: what matters is that the hook runs, that
nothing is added twice, and that nothing is lost where one parameter gets gradients from two places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from irpo_megatron.config import ParallelConfig
from irpo_megatron.losses.log_probs import token_log_probs

VOCABULARY, ROWS, HIDDEN = 21, 24, 16
# Tokens of the micro-batches of a step. The one without a single token to predict must disturb nothing.
MICRO_BATCHES = (6, 0, 5)
STEPS = 2  # the wrapper finds out in the first step which gradients to wait for, and relies on it in the second


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way in which the wrapper and the model can be set up."""

    tied: bool
    is_marked: bool = False
    """Megatron-Core's GPTModel marks tied weights with `zero_out_wgrad` without pipelining; others do not."""
    overlap: bool
    """Sum over data-parallel ranks while the backward pass still runs."""
    dtype: torch.dtype = torch.float32
    buffer_dtype: torch.dtype = torch.float32
    chunks: int = 1


CASES = [
    Case(tied=tied, overlap=overlap, dtype=dtype, chunks=chunks)
    for tied in (False, True)
    for overlap in (False, True)
    for dtype in (torch.float32, torch.bfloat16)
    for chunks in (1, 3)
] + [
    Case(tied=True, is_marked=True, overlap=False),
    Case(tied=True, is_marked=True, overlap=True),
    Case(tied=False, overlap=True, dtype=torch.bfloat16, buffer_dtype=torch.bfloat16),
    Case(tied=True, overlap=True, dtype=torch.bfloat16, buffer_dtype=torch.bfloat16),
]


class Model(torch.nn.Module):
    """Embedding, one layer, output matrix."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embedding = torch.nn.Parameter(torch.randn(ROWS, HIDDEN, generator=generator))
        self.layer = torch.nn.Parameter(torch.randn(HIDDEN, HIDDEN, generator=generator) / 4)
        output = torch.randn(ROWS, HIDDEN, generator=generator)
        self.output = self.embedding if case.tied else torch.nn.Parameter(output)
        self.to(case.dtype)
        if case.is_marked:
            self.output.zero_out_wgrad = True  # type: ignore[attr-defined]

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.nn.functional.embedding(tokens, self.embedding) @ self.layer)


def _micro_batches(step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(tokens [n], targets [n]) of each micro-batch."""
    generator = torch.Generator().manual_seed(step)
    return [
        (
            torch.randint(VOCABULARY, (size,), generator=generator),
            torch.randint(VOCABULARY, (size,), generator=generator),
        )
        for size in MICRO_BATCHES
    ]


def _main_grads(case: Case) -> list[dict[str, torch.Tensor]]:
    """`main_grad` of every parameter after each step."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

    model = Model(case)
    wrapped = DistributedDataParallel(
        TransformerConfig(num_layers=1, hidden_size=HIDDEN, num_attention_heads=1),
        DistributedDataParallelConfig(
            overlap_grad_reduce=case.overlap, grad_reduce_in_fp32=case.buffer_dtype == torch.float32
        ),
        model,
    )
    results = []
    for step in range(STEPS):
        wrapped.zero_grad_buffer()
        micro_batches = _micro_batches(step)
        with wrapped.no_sync():
            for tokens, targets in micro_batches[:-1]:
                _backward(model, case, tokens, targets)
        _backward(model, case, *micro_batches[-1])
        wrapped.finish_grad_sync()
        assert all(parameter.grad is None for parameter in model.parameters()), "a hook did not run"
        results.append({name: parameter.main_grad.clone() for name, parameter in model.named_parameters()})  # type: ignore[attr-defined]
        assert all(gradient.dtype == case.buffer_dtype for gradient in results[-1].values())
    return results


def _backward(model: Model, case: Case, tokens: torch.Tensor, targets: torch.Tensor) -> None:
    token_log_probs(
        model.hidden(tokens),
        model.output,
        targets,
        vocabulary=VOCABULARY,
        group=torch.distributed.group.WORLD,
        logits_bytes=4 * ROWS * -(-len(targets) // case.chunks),
    ).sum().backward()


def _expected(case: Case, step: int) -> dict[str, torch.Tensor]:
    """The same gradients by autograd in float64."""
    model = Model(case).double()
    for tokens, targets in _micro_batches(step):
        logits = model.hidden(tokens) @ model.output[:VOCABULARY].T
        torch.log_softmax(logits, dim=-1).gather(-1, targets[:, None]).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _all_cases(_: int, path: Path) -> None:
    from irpo_megatron.engine.parallel import parallel_world

    with parallel_world(ParallelConfig(), threads=1):
        torch.save([_main_grads(case) for case in CASES], path)


@pytest.fixture(scope="module")
def main_grads(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, torch.Tensor]]]:
    """Of every case, in a process of its own: Megatron-Core's CPU platform changes torch for good."""
    path = tmp_path_factory.mktemp("main_grad") / "results.pt"
    torch.multiprocessing.start_processes(_all_cases, args=(path,), nprocs=1, start_method="fork")
    results: list[list[dict[str, torch.Tensor]]] = torch.load(path)
    return results


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_main_grad_is_the_gradient_of_all_uses_over_all_micro_batches(
    main_grads: list[list[dict[str, torch.Tensor]]], case: Case
) -> None:
    # In bf16, hidden states, logits and gradients are rounded by up to 2**-9 each.
    tolerance = 1e-5 if case.dtype == torch.float32 else 2**-5
    for step, actual in enumerate(main_grads[CASES.index(case)]):
        expected = _expected(case, step)
        assert actual.keys() == expected.keys()
        for name, gradient in actual.items():
            exact = expected[name]
            torch.testing.assert_close(gradient.double(), exact, atol=tolerance * float(exact.abs().max()), rtol=0)
            if name == "output" or (case.tied and name == "embedding"):
                assert torch.count_nonzero(gradient[VOCABULARY:]) == 0


def test_autograd_is_handed_a_zero_that_takes_no_memory() -> None:
    weight = torch.nn.Parameter(torch.randn(ROWS, HIDDEN))
    weight.main_grad = torch.ones(ROWS, HIDDEN)  # type: ignore[attr-defined]
    values = token_log_probs(
        torch.ones(2, HIDDEN),
        weight,
        torch.tensor([0, 1]),
        vocabulary=VOCABULARY,
        group=torch.distributed.ProcessGroup(0, 1),
        logits_bytes=2**20,
    )
    values.sum().backward()
    assert weight.grad is not None
    assert weight.grad.is_sparse
    assert weight.grad._nnz() == 0
    assert torch.equal(weight.main_grad[VOCABULARY:], torch.ones(ROWS - VOCABULARY, HIDDEN))  # type: ignore[attr-defined]
    assert not torch.equal(weight.main_grad[:VOCABULARY], torch.ones(VOCABULARY, HIDDEN))  # type: ignore[attr-defined]
