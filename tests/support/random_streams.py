"""Random streams, and what attends to what in them by definition: one matrix, written down token by token."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from irpo_megatron.engine.streams import Piece, Stream

Rows = list[tuple[int, list[int]]]
"""Tokens of a prompt, and of what each of its completions adds to the stream (a completion of one token adds none)."""

rows_of_stream: st.SearchStrategy[Rows] = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.integers(0, 6), min_size=1, max_size=3)), min_size=1, max_size=4
)


def random_rows(seed: int, *, rows: int) -> Rows:
    """Rows that share prompts; some completions add nothing."""
    random_ = random.Random(seed)
    return [
        (random_.randint(1, 6), [random_.choice([0, 1, 3, 7]) for _ in range(random_.randint(1, 3))])
        for _ in range(rows)
    ]


def stream_of(rows: Rows, *, multiple: int = 1, multiple_of_each: int = 1) -> Stream:
    """The rows end to end; token i of the stream is i.

    Args:
        multiple: Fill the stream up to a multiple of this.
        multiple_of_each: Fill every piece up to a multiple of this.
    """
    stream = Stream()

    def append(count: int, prefix: range) -> None:
        start = len(stream.tokens)
        assert stream.append(range(start, start + count), prefix=prefix) == start
        stream.fill(multiple_of_each)

    for prompt, completions in rows:
        start = len(stream.tokens)
        append(prompt + completions[0], range(0))
        for added in completions[1:]:
            append(added, range(start, start + prompt))
    stream.fill(multiple)
    return stream


def allowed(pieces: Sequence[Piece]) -> torch.Tensor:
    """[T, T] whether the token of the row attends to that of the column: its prefix, and its piece up to itself."""
    tokens = pieces[-1].end
    matrix = torch.zeros(tokens, tokens, dtype=torch.bool)
    for piece in pieces:
        for token in range(piece.start, piece.end):
            for other in range(tokens):
                matrix[token, other] = other in piece.prefix or piece.start <= other <= token
    return matrix
