"""Stop strings: whether the last token of a completion completes one."""

from __future__ import annotations

from collections.abc import Sequence

from irpo_megatron.tokenizer import Tokenizer

# Tokens read before those that the longest stop string can span: some decoders drop the space in front of the first
# token that they are given, and a special token decodes to nothing.
_LEAD_TOKENS = 4


class StopStrings:
    """Looks for stop strings in the decoded tail of a completion.

    Attributes:
        tail: How many of the last tokens have to be looked at: a token adds at least one byte of text.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        self._strings = tuple(strings)
        self._tokenizer = tokenizer
        self.tail = max((len(string.encode()) for string in strings), default=0) + _LEAD_TOKENS

    def __bool__(self) -> bool:
        return bool(self._strings)

    def complete(self, last_ids: Sequence[int]) -> bool:
        """Whether the text of the last `tail` ids (all ids of a shorter completion) holds a stop string."""
        text = self._tokenizer.decode(last_ids)
        return any(string in text for string in self._strings)
