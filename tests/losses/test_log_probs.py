"""Log-probs of tokens, and both gradients, against torch's log_softmax in float64 on the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import on_ranks

from irpo_megatron.losses.log_probs import sequence_sums, token_log_probs

TOKENS = 13
HIDDEN = 8
ALONE = dist.ProcessGroup(0, 1)
"""A group of one rank: it is asked for its size and never to communicate."""
AMPLE = 2**30


def _inputs(
    vocabulary: int, rows: int, *, tokens: int = TOKENS, dtype: torch.dtype = torch.float32, scale: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(hidden [n, h], output matrix [rows, h], targets [n], gradient [n]); padding would take all probability."""
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    hidden[:, 0] = 1.0
    weight = scale * torch.randn(rows, HIDDEN, generator=generator)
    weight[vocabulary:, 0] = 100.0
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[:3] = torch.tensor([0, vocabulary - 1, vocabulary // 2])[:tokens]
    return hidden.to(dtype), weight.to(dtype), targets, torch.randn(tokens, generator=generator)


def _expected(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(values [n], gradient in hidden [n, h], gradient in weight [rows, h]) in float64."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    values = torch.log_softmax((hidden @ weight.T)[:, :vocabulary], dim=-1)[torch.arange(len(targets)), targets]
    values.backward(gradient.double())
    assert hidden.grad is not None
    assert weight.grad is not None
    return values.detach(), hidden.grad, weight.grad


def _actual(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    gradient: torch.Tensor,
    vocabulary: int,
    logits_bytes: int,
    group: dist.ProcessGroup = ALONE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same from this rank's rows of the output matrix; in hidden, this rank's part."""
    mine = weight.chunk(group.size())[group.rank()].clone().requires_grad_()
    hidden = hidden.clone().requires_grad_()
    values = token_log_probs(hidden, mine, targets, vocabulary=vocabulary, group=group, logits_bytes=logits_bytes)
    values.backward(gradient)
    assert hidden.grad is not None
    assert mine.grad is not None
    assert values.dtype == torch.float32
    assert hidden.grad.dtype == mine.grad.dtype == hidden.dtype
    return values.detach(), hidden.grad, mine.grad


def _bytes(tokens: int, rows: int) -> int:
    """Logits of this many tokens in fp32."""
    return tokens * rows * 4


def _on_one_rank(vocabulary: int, rows: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Results in one chunk, in chunks of 7 and 6 tokens, and a token at a time."""
    inputs = _inputs(vocabulary, rows)
    rows_here = rows // dist.get_world_size()
    return [
        _actual(*inputs, vocabulary, _bytes(tokens, rows_here), dist.group.WORLD) for tokens in (TOKENS, TOKENS - 1, 0)
    ]


@pytest.mark.parametrize(
    ("ranks", "vocabulary", "rows"),
    [
        (1, 11, 11),
        (1, 11, 16),
        (2, 12, 12),
        (2, 11, 12),
        (3, 13, 15),
        (3, 4, 15),  # two ranks hold no real row
    ],
)
def test_value_and_gradients_are_those_of_log_softmax(ranks: int, vocabulary: int, rows: int) -> None:
    values, in_hidden, in_weight = _expected(*_inputs(vocabulary, rows), vocabulary)
    by_rank = on_ranks(ranks, _on_one_rank, vocabulary, rows)
    for same_chunks in zip(*by_rank, strict=True):
        for actual, _, _ in same_chunks:
            torch.testing.assert_close(actual.double(), values, atol=2e-5, rtol=1e-6)
        parts = torch.stack([part for _, part, _ in same_chunks])
        torch.testing.assert_close(parts.double().sum(0), in_hidden, atol=2e-5, rtol=1e-5)
        gradient = torch.cat([gradient for _, _, gradient in same_chunks])
        torch.testing.assert_close(gradient.double(), in_weight, atol=2e-5, rtol=1e-5)
        assert torch.count_nonzero(gradient[vocabulary:]) == 0


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 20),
    vocabulary=st.integers(1, 40),
    padding=st.integers(0, 5),
    logits_bytes=st.integers(0, 4000),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
)
def test_any_size_in_any_chunks(tokens: int, vocabulary: int, padding: int, logits_bytes: int, scale: float) -> None:
    inputs = _inputs(vocabulary, vocabulary + padding, tokens=tokens, scale=scale)
    expected = _expected(*inputs, vocabulary)
    actual = _actual(*inputs, vocabulary, logits_bytes)
    for tensor, exact in zip(actual, expected, strict=True):
        # Logits reach several times `scale`, and errors are relative to the largest of them.
        torch.testing.assert_close(tensor.double(), exact, atol=2e-5 * max(1.0, scale), rtol=2e-5)


def test_cache_sized_blocks_and_chunks_do_not_show() -> None:
    vocabulary = 3001
    inputs = _inputs(
        vocabulary, vocabulary, tokens=400
    )  # 4.8 MB of logits, so that several blocks go through the cache
    for tokens in (400, 250, 7):
        for tensor, exact in zip(
            _actual(*inputs, vocabulary, _bytes(tokens, vocabulary)), _expected(*inputs, vocabulary), strict=True
        ):
            torch.testing.assert_close(tensor.double(), exact, atol=5e-5, rtol=2e-5)


@pytest.mark.parametrize("tokens_at_once", [TOKENS, 4])
def test_bf16_inputs_have_the_error_of_bf16_logits_and_no_more(tokens_at_once: int) -> None:
    vocabulary, rows = 301, 304
    inputs = _inputs(vocabulary, rows, dtype=torch.bfloat16, scale=0.5)
    values, in_hidden, in_weight = _expected(*inputs, vocabulary)
    actual, part, gradient = _actual(*inputs, vocabulary, _bytes(tokens_at_once, rows))
    # bf16 rounds by at most 2**-9 of a value. So do the logits, none above 8 here, and as much again moves their sum.
    torch.testing.assert_close(actual.double(), values, atol=2 * 8 * 2**-9, rtol=0)
    # A probability is off by as much, relatively; then logits' gradients and results are rounded.
    torch.testing.assert_close(part.double(), in_hidden, atol=float(in_hidden.abs().max()) * 2**-5, rtol=0)
    torch.testing.assert_close(gradient.double(), in_weight, atol=float(in_weight.abs().max()) * 2**-5, rtol=0)
    assert torch.count_nonzero(gradient[vocabulary:]) == 0


def test_bf16_weight_gradients_of_many_chunks_are_summed_in_fp32() -> None:
    tokens = 320  # each adds 1, and counting in bf16 ends at 256
    hidden = torch.zeros(tokens, HIDDEN, dtype=torch.bfloat16)
    hidden[:, 0] = 1.0
    weight = torch.zeros(2, HIDDEN, dtype=torch.bfloat16)
    _, _, gradient = _actual(
        hidden, weight, torch.zeros(tokens, dtype=torch.long), torch.full((tokens,), 2.0), 2, _bytes(1, 2)
    )
    assert gradient[:, 0].tolist() == [320.0, -320.0]


def test_no_tokens_have_no_values_and_no_gradient() -> None:
    hidden, weight, targets, gradient = _inputs(5, 6, tokens=0)
    values, in_hidden, in_weight = _actual(hidden, weight, targets, gradient, 5, AMPLE)
    assert values.shape == (0,)
    assert in_hidden.shape == (0, HIDDEN)
    assert in_weight.shape == (6, HIDDEN)
    assert torch.count_nonzero(in_weight) == 0


def test_uniform_logits_give_minus_log_of_the_vocabulary_for_every_token_id() -> None:
    values = token_log_probs(
        torch.zeros(7, HIDDEN), torch.ones(8, HIDDEN), torch.arange(7), vocabulary=7, group=ALONE, logits_bytes=AMPLE
    )
    torch.testing.assert_close(values, torch.full((7,), -1.9459101))


@pytest.mark.parametrize("tokens_at_once", [2, 1])
def test_improbable_tokens_bring_no_denormal_numbers_and_keep_their_log_prob(tokens_at_once: int) -> None:
    hidden, weight = torch.ones(2, 1), torch.tensor([[0.0], [-95.0], [-300.0]])  # exp(-95) is denormal
    targets = torch.tensor([1, 2])
    values, _, in_weight = _actual(hidden, weight, targets, torch.tensor([1.0, 1e-4]), 3, _bytes(tokens_at_once, 3))
    assert values.tolist() == [-95.0, -300.0]
    torch.testing.assert_close(in_weight, torch.tensor([[-1.0001], [1.0], [1e-4]]), atol=1e-7, rtol=0)
    one_token = _actual(hidden[:1], weight, targets[:1], torch.tensor([1e-4]), 3, AMPLE)[2]
    assert one_token[2].abs() > torch.finfo(torch.float32).tiny


def test_a_target_outside_the_vocabulary_has_no_probability() -> None:
    hidden, weight, _, _ = _inputs(5, 8, tokens=3)
    targets = torch.tensor([4, 5, -1])
    values = token_log_probs(hidden, weight, targets, vocabulary=5, group=ALONE, logits_bytes=AMPLE)
    assert torch.isfinite(values).tolist() == [True, False, False]
    assert values[1:].tolist() == [-torch.inf, -torch.inf]


@pytest.mark.parametrize("tokens_at_once", [TOKENS, 4])
def test_a_second_backward_pass_gives_the_same_again(tokens_at_once: int) -> None:
    hidden, weight, targets, gradient = _inputs(11, 11)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    values = token_log_probs(
        hidden, weight, targets, vocabulary=11, group=ALONE, logits_bytes=_bytes(tokens_at_once, 11)
    )
    first = torch.autograd.grad(values, leaves, gradient, retain_graph=True)
    second = torch.autograd.grad(values, leaves, gradient)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


def test_a_gradient_that_nobody_wants_is_not_made() -> None:
    hidden, weight, targets, gradient = _inputs(11, 11)
    for wanted, other in ((hidden, weight), (weight, hidden)):
        wanted.requires_grad_()
        other.requires_grad_(False)
        token_log_probs(hidden, weight, targets, vocabulary=11, group=ALONE, logits_bytes=AMPLE).backward(gradient)
        assert wanted.grad is not None
        assert other.grad is None
        wanted.grad = None


def test_one_type_for_both_factors() -> None:
    hidden, weight, targets, _ = _inputs(11, 11)
    with pytest.raises(AssertionError, match=r"hidden states are torch.bfloat16, the output matrix is torch.float32"):
        token_log_probs(hidden.bfloat16(), weight, targets, vocabulary=11, group=ALONE, logits_bytes=AMPLE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tokens_at_once", [TOKENS, 4])
def test_bf16_on_cuda_is_bf16_on_cpu(tokens_at_once: int) -> None:
    inputs = _inputs(301, 304, dtype=torch.bfloat16, scale=0.5)
    expected = _expected(*inputs, 301)
    actual = _actual(*(tensor.cuda() for tensor in inputs), 301, _bytes(tokens_at_once, 304))
    for tensor, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(tensor.cpu().double(), exact, atol=float(exact.abs().max()) * 2**-5, rtol=0)


def test_sums_over_sequences_keep_each_token_with_its_own() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    sums = sequence_sums(values, torch.tensor([0, 2, 2, 0]), 4)
    assert sums.tolist() == [9.0, 0.0, 6.0, 0.0]
    sums.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 3.0, 3.0, 1.0]
