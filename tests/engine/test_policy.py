"""The head of the model: what it relies on in Megatron-Core, and its gradient over tensor-parallel ranks."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, mappings
from support.float64_reference import load_float64
from support.places import place
from support.ranks import in_child, on_ranks
from support.tiny_model import make_llama

from irpo_megatron.config import ParallelConfig
from irpo_megatron.conversion.into_megatron import load_model
from irpo_megatron.conversion.weights import Weights
from irpo_megatron.engine.architecture import Architecture, read_architecture
from irpo_megatron.engine.inputs import model_input
from irpo_megatron.engine.model import build_model, transformer_config
from irpo_megatron.engine.parallel import parallel_world
from irpo_megatron.engine.policy import Policy, Targets, _OutputLayer
from irpo_megatron.engine.streams import Stream
from irpo_megatron.losses.log_probs import token_log_probs
from irpo_megatron.model_folder import open_model_folder

VOCABULARY, ROWS, HIDDEN, TOKENS = 11, 12, 8, 6
PREDICTED_BY = torch.tensor([0, 3, 3, 5, 3])
"""Token 3 ends a prompt that several completions share; 1, 2 and 4 predict nothing."""


# What Megatron-Core 0.16.1 is overridden in


def test_megatron_hands_hidden_states_and_labels_to_postprocess_by_name() -> None:
    assert {"hidden_states", "labels"} <= set(inspect.signature(GPTModel._postprocess).parameters)
    source = ast.parse(textwrap.dedent(inspect.getsource(GPTModel.forward)))
    calls = [
        node
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_postprocess"
    ]
    assert len(calls) == 1
    assert not calls[0].args
    assert {"hidden_states", "labels"} <= {keyword.arg for keyword in calls[0].keywords}


def test_megatron_builds_the_output_layer_as_the_class_that_is_replaced() -> None:
    source = inspect.getsource(GPTModel.__init__)
    assert "self.output_layer = tensor_parallel.ColumnParallelLinear(" in source
    assert "tp_group" in inspect.signature(ColumnParallelLinear.__init__).parameters
    assert _OutputLayer.__init__ is ColumnParallelLinear.__init__
    for attribute in ("self.sequence_parallel =", "self.tp_group =", "self.weight ="):
        assert attribute in inspect.getsource(ColumnParallelLinear.__init__)


def _reduced() -> tuple[list[float], list[float]]:
    ones = torch.ones(2, 3)
    assert dist.group.WORLD is not None
    unreduced = mappings._reduce(ones.T, dist.group.WORLD).flatten().tolist()
    return unreduced, mappings._reduce(ones, dist.group.WORLD).flatten().tolist()


def test_megatron_returns_a_gradient_unreduced_that_is_not_contiguous() -> None:
    """The trap that the head must stay out of; should this fail, Megatron-Core has mended it."""
    assert on_ranks(2, _reduced) == [([1.0] * 6, [2.0] * 6)] * 2


# The gradient of the head


def _architecture() -> Architecture:
    return Architecture(
        layers=1,
        hidden_size=HIDDEN,
        heads=6,
        kv_heads=6,
        head_size=4,
        ffn_size=18,
        vocabulary=VOCABULARY,
        context=32,
        rope_base=1e4,
        norm_epsilon=1e-5,
        tied_embeddings=False,
    )


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(hidden [t, 1, h], output matrix [rows, h], targets [n], gradient [n])."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (2 * torch.randn(*shape, generator=generator) for shape in ((TOKENS, 1, HIDDEN), (ROWS, HIDDEN)))
    targets = torch.randint(VOCABULARY, PREDICTED_BY.shape, generator=generator)
    return hidden, weight, targets, torch.randn(len(PREDICTED_BY), generator=generator)


def _of_head(sequence: bool, tied: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probs, gradient in the hidden states that this rank holds, gradient in its rows of the output matrix)."""
    from megatron.core import parallel_state

    from irpo_megatron.engine.cpu import answer_for_cuda

    answer_for_cuda()
    ranks, rank = dist.get_world_size(), dist.get_rank()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks)
    group = parallel_state.get_tensor_model_parallel_group()
    hidden, weight, targets, gradient = _inputs()
    layer = ColumnParallelLinear(
        HIDDEN,
        ROWS,
        config=transformer_config(_architecture(), place(tensor=ranks, sequence=sequence)),
        init_method=torch.nn.init.zeros_,
        bias=False,
        skip_bias_add=False,
        skip_weight_param_allocation=tied,
        tp_group=group,
    )
    layer.__class__ = _OutputLayer
    mine = torch.nn.Parameter(weight.chunk(ranks)[rank].clone())
    if not tied:
        layer.weight = mine
    # A view, as a pipeline stage may be handed one: contiguous neither in itself nor in what comes back.
    held = (hidden.chunk(ranks)[rank] if sequence else hidden).transpose(0, 2).contiguous().requires_grad_()
    head = functools.partial(token_log_probs, vocabulary=VOCABULARY, group=group, logits_bytes=2**20)
    wanted = Targets(tokens=targets, predicted_by=PREDICTED_BY, head=head)

    reduce, reduced = mappings._reduce, []
    mappings._reduce = lambda tensor, group: (reduced.append(tensor.is_contiguous()), reduce(tensor, group))[1]
    log_probs = layer(held.transpose(0, 2), wanted, shared_weight=mine if tied else None)
    log_probs.backward(gradient)
    assert reduced == ([] if sequence else [True]), "one all-reduce of a gradient that is contiguous"
    assert held.grad is not None
    assert mine.grad is not None
    return log_probs.detach(), held.grad.transpose(0, 2), mine.grad


@pytest.mark.skipif(torch.cuda.is_available(), reason="Megatron-Core's gather would want CUDA tensors and NCCL")
@pytest.mark.parametrize("tied", [False, True], ids=["own matrix", "tied"])
@pytest.mark.parametrize("sequence", [False, True], ids=["whole", "sequence parallel"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_log_probs_and_gradients_are_those_of_one_process(ranks: int, sequence: bool, tied: bool) -> None:
    hidden, weight, targets, gradient = (tensor.clone() for tensor in _inputs())
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = (hidden[PREDICTED_BY, 0] @ weight.T)[:, :VOCABULARY]
    expected = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    expected.backward(gradient.double())
    assert hidden.grad is not None
    assert weight.grad is not None
    by_rank = on_ranks(ranks, _of_head, sequence, tied)
    for rank, (log_probs, in_hidden, in_weight) in enumerate(by_rank):
        torch.testing.assert_close(log_probs.double(), expected.detach(), atol=1e-5, rtol=1e-6)
        whole = hidden.grad.chunk(ranks)[rank] if sequence else hidden.grad
        torch.testing.assert_close(in_hidden.double(), whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(in_weight.double(), weight.grad.chunk(ranks)[rank], atol=1e-5, rtol=1e-5)


# The whole model


def _of_model(folder: Path) -> tuple[torch.Tensor, int, bool]:
    """(log-probs of targets behind a shared prompt, calls of the output layer, whether its gradient arrived)."""
    found = open_model_folder(folder)
    architecture = read_architecture(found.config)
    with parallel_world(ParallelConfig(), threads=1) as alone:
        (model,) = build_model(architecture, alone)
        load_model([model], Weights(found, architecture))
        calls: list[Any] = []
        model.output_layer.register_forward_pre_hook(lambda module, arguments: calls.append(module))
        stream = Stream()
        stream.append([3, 4, 5, 6])  # prompt 3 4 5, completion 6 7
        stream.append([8], prefix=range(3))  # completion 8 9 behind the same prompt
        inputs = model_input(stream, alone)
        head = functools.partial(
            token_log_probs, vocabulary=architecture.vocabulary, group=alone.tensor_group, logits_bytes=2**20
        )
        targets = Targets(
            tokens=torch.tensor([6, 7, 8, 9]).to(alone.device),
            predicted_by=torch.tensor([2, 3, 2, 4]).to(alone.device),
            head=head,
        )
        values = model(inputs.tokens, inputs.positions, None, labels=targets, packed_seq_params=inputs.attention)
        values.sum().backward()
        gradient = model.output_layer.weight.grad
        return values.detach().cpu(), len(calls), gradient is not None and bool(gradient.abs().sum() > 0)


def test_the_model_answers_with_log_probs_and_its_output_layer_is_called_as_a_module(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    reference: Any = load_float64(folder)
    with torch.no_grad():
        rows = [reference(torch.tensor([row])).logits[0].log_softmax(dim=-1) for row in ([3, 4, 5, 6], [3, 4, 5, 8])]
    expected = torch.stack([rows[0][2, 6], rows[0][3, 7], rows[1][2, 8], rows[1][3, 9]])
    log_probs, calls, has_gradient = in_child(_of_model, folder)
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=1e-6)
    assert calls == 1, "hooks that wait for gathered parameters hang on calls"
    assert has_gradient


def test_an_earlier_pipeline_stage_hands_on_its_hidden_states() -> None:
    hidden = torch.ones(1)
    stage: Any = SimpleNamespace(post_process=False)
    targets = Targets(tokens=torch.ones(1), predicted_by=torch.ones(1), head=lambda *_: torch.ones(1))
    assert Policy._postprocess(stage, hidden, labels=targets, input_ids=None) is hidden
