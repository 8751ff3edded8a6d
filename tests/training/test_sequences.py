"""Which token predicts which: every target's predictor must see exactly what comes before the target, and no more.

What a token sees is read from what the model is called with, not from how it was laid out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import place
from support.ranks import on_ranks

from irpo_megatron.engine.attention import StreamParams
from irpo_megatron.training.sequences import Row, Sequences, lay_out

token_ids = st.integers(0, 9)
row_lists = st.lists(
    st.builds(
        lambda prompt, completions: Row(prompt=prompt, completions=completions),
        st.lists(token_ids, min_size=1, max_size=5),
        st.lists(st.lists(token_ids, min_size=1, max_size=5), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)
HARD_ROWS = [
    Row(prompt=[7, 8], completions=[[0, 5, 3], [0], [0, 5]]),  # one token only; a prefix of another
    Row(prompt=[9], completions=[[4]]),
    Row(prompt=[7, 8], completions=[[1, 2]]),
]


def _head(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    raise AssertionError("nothing is computed here")


def _laid_out(
    rows: Sequence[Row], *, context: int = 1, transformer_engine: bool = False, shared: bool, padded: bool
) -> list[Sequences]:
    """What every context-parallel rank computes."""
    return [
        lay_out(
            rows,
            place(context=context, context_rank=rank, transformer_engine=transformer_engine),
            _head,
            shared_prompt=shared,
            padded=padded,
        )
        for rank in range(context)
    ]


def _stream(parts: Sequence[Sequences]) -> tuple[list[int], list[int]]:
    """Tokens and positions of the whole stream, put together from the ranks'."""
    tokens, positions = ([-1] * len(parts[0].input.columns) for _ in range(2))
    for part in parts:
        for index, column in enumerate(part.input.columns.tolist()):
            if column >= 0:
                tokens[index] = int(part.input.tokens[0, column])
                positions[index] = int(part.input.positions[0, column])
    assert -1 not in tokens
    return tokens, positions


def _seen(part: Sequences) -> dict[int, list[int]]:
    """For each column of a rank the places in the stream that it attends to, in the order of its keys."""
    attention = part.input.attention
    edges = torch.tensor([0, *attention.key_blocks]).cumsum(0).tolist()
    seen: dict[int, list[int]] = {}
    for call in attention.calls:
        keys = [index for number in call.blocks for index in range(edges[number], edges[number + 1])]
        assert call.mask is None or call.mask.shape == (call.queries, len(keys))
        for query in range(call.queries):
            visible = range(query + 1) if call.mask is None else call.mask[query].nonzero().flatten().tolist()
            seen[len(seen)] = [keys[index] for index in visible]
    return seen


def _check(rows: Sequence[Row], parts: Sequence[Sequences]) -> None:
    """Every completion token is predicted once, by a token that sees exactly the prompt and the tokens before it."""
    tokens, positions = _stream(parts)
    predicted: list[tuple[int, int, tuple[int, ...]]] = []
    for part in parts:
        assert part.count == sum(len(row.completions) for row in rows)
        seen = _seen(part)
        triples = zip(part.targets.tokens, part.targets.predicted_by, part.completion_of, strict=True)
        for target, column, completion in triples:
            places = seen[int(column)]
            assert [positions[index] for index in places] == list(range(len(places)))
            predicted.append((int(completion), int(target), tuple(tokens[index] for index in places)))
    expected = []
    completions = ((row.prompt, completion) for row in rows for completion in row.completions)
    for number, (prompt, completion) in enumerate(completions):
        for offset, target in enumerate(completion):
            expected.append((number, target, (*prompt, *completion[:offset])))
    assert sorted(predicted) == sorted(expected)


@settings(max_examples=100, deadline=None)
@given(row_lists, st.integers(1, 3), st.booleans(), st.booleans())
def test_every_target_is_predicted_from_what_comes_before_it(
    rows: list[Row], context: int, shared: bool, padded: bool
) -> None:
    _check(rows, _laid_out(rows, context=context, shared=shared, padded=padded))


@pytest.mark.parametrize("context", [1, 2, 4])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_a_completion_of_one_token_and_a_prefix_of_another(context: int, shared: bool, padded: bool) -> None:
    _check(HARD_ROWS, _laid_out(HARD_ROWS, context=context, shared=shared, padded=padded))


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("padded", [True, False])
def test_for_transformer_engine_a_sequence_is_what_its_edges_enclose(context: int, padded: bool) -> None:
    parts = _laid_out(HARD_ROWS, context=context, transformer_engine=True, shared=False, padded=padded)
    tokens, _ = _stream(parts)
    edges = parts[0].input.attention.cu_seqlens_q.tolist()
    sequences = [tokens[start:end] for start, end in itertools.pairwise(edges)]
    rows = [(row.prompt, completion) for row in HARD_ROWS for completion in row.completions]
    assert len(sequences) == len(rows)
    for sequence, (prompt, completion) in zip(sequences, rows, strict=True):
        whole = [*prompt, *completion[:-1]]
        assert sequence[: len(whole)] == whole
        assert not any(sequence[len(whole) :])
        assert len(sequence) % (2 * context if context > 1 else 1) == 0
    assert len({len(sequence) for sequence in sequences}) == 1 or not padded
    found = []
    for part in parts:
        places = {column: index for index, column in enumerate(part.input.columns.tolist()) if column >= 0}
        for target, column, completion in zip(
            part.targets.tokens.tolist(), part.targets.predicted_by.tolist(), part.completion_of.tolist(), strict=True
        ):
            found.append((completion, places[column] - edges[completion], target))
    expected = [
        (number, len(prompt) - 1 + offset, target)
        for number, (prompt, completion) in enumerate(rows)
        for offset, target in enumerate(completion)
    ]
    assert sorted(found) == expected


@given(row_lists, st.booleans())
def test_a_row_counts_the_tokens_that_it_adds_to_a_stream(rows: list[Row], shared: bool) -> None:
    (packed,) = _laid_out(rows, shared=shared, padded=False)
    assert packed.input.tokens.shape == (1, sum(row.tokens(shared_prompt=shared) for row in rows))


@given(row_lists, st.booleans())
def test_padding_makes_every_row_as_long_as_the_longest(rows: list[Row], shared: bool) -> None:
    (padded,) = _laid_out(rows, shared=shared, padded=True)
    alone = rows if shared else [Row(prompt=r.prompt, completions=[c]) for r in rows for c in r.completions]
    longest = max(row.tokens(shared_prompt=True) for row in alone)
    assert padded.input.tokens.shape == (1, len(alone) * longest)


def test_a_row_worked_by_hand() -> None:
    (shared,) = _laid_out(HARD_ROWS[:1], shared=True, padded=False)
    assert shared.input.tokens.tolist() == [[7, 8, 0, 5, 0]]
    assert shared.input.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert shared.targets.tokens.tolist() == [0, 5, 3, 0, 0, 5]
    assert shared.targets.predicted_by.tolist() == [1, 2, 3, 1, 1, 4]
    assert shared.completion_of.tolist() == [0, 0, 0, 1, 2, 2]
    (apart,) = _laid_out(HARD_ROWS[:1], shared=False, padded=True)
    assert apart.input.tokens.tolist() == [[7, 8, 0, 5, 7, 8, 0, 0, 7, 8, 0, 0]]
    assert apart.targets.predicted_by.tolist() == [1, 2, 3, 5, 9, 10]
    assert apart.targets.head is _head
    assert isinstance(apart.input.attention, StreamParams)


def test_a_completion_sums_its_own_tokens() -> None:
    (laid_out,) = _laid_out(HARD_ROWS, shared=True, padded=False)
    log_probs = -torch.arange(1.0, 10.0)
    sums = laid_out.completion_sums(log_probs, place())
    # Completions of 3, 1, 2, 1 and 2 tokens, one after the other.
    assert sums.tolist() == [-6.0, -4.0, -11.0, -7.0, -17.0]


def _sums_of_rank(shared: bool) -> tuple[list[float], list[float]]:
    """(sums, gradient in this rank's log-probs); the log-prob of a target is its token, less a tenth a completion."""
    assert dist.group.WORLD is not None
    here = place(context=dist.get_world_size(), context_rank=dist.get_rank(), context_group=dist.group.WORLD)
    part = lay_out(HARD_ROWS, here, _head, shared_prompt=shared, padded=False)
    log_probs = (part.targets.tokens - 0.1 * part.completion_of).requires_grad_()
    sums = part.completion_sums(log_probs, here)
    (sums * torch.arange(len(sums))).sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == part.completion_of.tolist(), "of the one loss, not of one a rank"
    return sums.tolist(), log_probs.grad.tolist()


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_context_parallel_ranks_sum_to_the_same(ranks: int, shared: bool) -> None:
    completions = [completion for row in HARD_ROWS for completion in row.completions]
    expected = [sum(completion) - 0.1 * number * len(completion) for number, completion in enumerate(completions)]
    by_rank = on_ranks(ranks, _sums_of_rank, shared)
    for sums, _ in by_rank:
        assert sums == pytest.approx(expected)
    gradients = [number for _, mine in by_rank for number in mine]
    assert len(gradients) == sum(map(len, completions)), "every target is on one rank"


@pytest.mark.parametrize("row", [Row(prompt=[], completions=[[1]]), Row(prompt=[1], completions=[[2], []])])
def test_a_prompt_or_a_completion_without_tokens_is_a_defect(row: Row) -> None:
    with pytest.raises(AssertionError, match="a prompt has at least one token"):
        _laid_out([row], shared=True, padded=False)
