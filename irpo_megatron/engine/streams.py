"""The tokens of a micro-batch as one flat stream: what attends to what, and which rank computes which part.

A micro-batch is one row of tokens, whatever is in it: packed sequences, padded ones, completions that share a prompt.
It is made of pieces. The tokens of a piece attend to one another causally and, before that, to the piece's prefix: an
earlier stretch of the stream, such as a prompt that another completion follows. Pieces see nothing else of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

PADDING = 0
"""The token that fills a stream up; nothing reads what is computed at its place."""
_NOTHING = range(0)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of tokens that continues its prefix."""

    start: int
    end: int
    position: int
    """Position id of its first token."""
    prefix: range
    """The stretch of the stream that it continues; empty for a sequence of its own."""


@dataclass
class Stream:
    """Tokens and pieces, appended one after the other."""

    tokens: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    def append(self, tokens: Sequence[int], *, prefix: range = _NOTHING) -> int:
        """Add a piece that continues `prefix`.

        Returns:
            Where in the stream it begins.
        """
        start = len(self.tokens)
        self.tokens.extend(tokens)
        self.pieces.append(Piece(start=start, end=len(self.tokens), position=len(prefix), prefix=prefix))
        return start

    def fill_to(self, length: int) -> None:
        """Lengthen the last piece until the stream is so long; causality hides the filling from all that counts."""
        self.tokens.extend([PADDING] * (length - len(self.tokens)))
        self.pieces[-1] = replace(self.pieces[-1], end=len(self.tokens))

    def fill(self, multiple: int) -> None:
        """Fill up to the next multiple."""
        self.fill_to(-(-len(self.tokens) // multiple) * multiple)


@dataclass(frozen=True, kw_only=True)
class Attend:
    """One attention call of a rank: consecutive queries, of which the last sees all keys and each other one fewer."""

    queries: range
    """Where the queries lie in the whole stream; a rank's calls follow one another in the order of its tokens."""
    keys: tuple[range, ...]
    """Where the keys lie in the whole stream."""


def cut(stretches: Sequence[range], *, context_rank: int, context_size: int) -> list[range]:
    """The parts of the stream that one context-parallel rank computes.

    Each stretch is cut into 2 x CP chunks, of which rank r takes number r and number 2 CP - 1 - r: under causal
    attention an early chunk is cheap and a late one dear, so that every rank does the same work.

    Args:
        stretches: The whole stream, or each of its sequences; lengths are multiples of 2 x CP.
    """
    if context_size == 1:
        return list(stretches)
    parts = []
    for stretch in stretches:
        size = len(stretch) // (2 * context_size)
        assert size * 2 * context_size == len(stretch), "a stretch is filled up to a multiple of 2 x CP"
        chunks = [stretch[number * size : (number + 1) * size] for number in range(2 * context_size)]
        parts += [chunks[context_rank], chunks[-1 - context_rank]]
    return parts


def attention_calls(pieces: Sequence[Piece], parts: Sequence[range]) -> list[Attend]:
    """Who attends to whom on the rank that computes `parts` of the stream, in the order of its tokens."""
    calls = []
    for part in parts:
        for piece in pieces:
            start, end = max(part.start, piece.start), min(part.stop, piece.end)
            if start >= end:
                continue
            own = range(piece.start, end)
            calls.append(Attend(queries=range(start, end), keys=(piece.prefix, own) if piece.prefix else (own,)))
    return calls


def positions(pieces: Sequence[Piece], parts: Sequence[range]) -> list[int]:
    """Position id of every token of `parts`."""
    everywhere: list[int] = []
    for piece in pieces:
        everywhere.extend(range(piece.position, piece.position + piece.end - piece.start))
    return [everywhere[index] for part in parts for index in part]
