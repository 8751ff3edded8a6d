"""Where a completion ends: one rule for engines that report their own ends, each in its own way.

An engine looks for stop strings among token ids, or cuts them off, or leaves the end token out. So its word is taken
for the token that it left out, and everything else is read from the token ids: a completion ends with its first end
token, or with the token that completes a stop string, or at `max_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence

from irpo_megatron.errors import UserError
from irpo_megatron.generation.protocol import Completion, SamplingSettings
from irpo_megatron.generation.stopping import StopStrings
from irpo_megatron.tokenizer import Tokenizer


class Ending:
    """Turns what an engine hands back into completions.

    Args:
        engine: Its name, for messages.
    """

    def __init__(self, engine: str, tokenizer: Tokenizer, settings: SamplingSettings) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_tokens = settings.max_tokens
        self._stop = StopStrings(settings.stop, tokenizer)

    def complete(self, ids: Sequence[int], finish_reason: object, stop_reason: object) -> Completion:
        """The completion that an engine's token ids hold.

        Args:
            finish_reason: `stop` or `length`, as the engine says.
            stop_reason: What ended it, as the engine says: a stop string, the id of an end token, or None for the end
                token.

        Raises:
            UserError: the engine gave another reason, or one that its token ids contradict.
        """
        if finish_reason not in ("stop", "length"):
            raise self._refusal(ids, finish_reason, stop_reason)
        end = self._first_end(ids)
        if end is None and finish_reason == "stop":
            dropped = self._tokenizer.eos_id if stop_reason is None else stop_reason
            if isinstance(dropped, int) and dropped in self._tokenizer.eos_ids:
                ids = [*ids, dropped]
                end = len(ids)
        whole = tuple(ids[:end])
        if len(whole) > self._max_tokens or (end is None and len(whole) != self._max_tokens):
            raise self._refusal(ids, finish_reason, stop_reason)
        return Completion(
            ids=whole, text=self._tokenizer.decode(whole), finish_reason="length" if end is None else "stop"
        )

    def _first_end(self, ids: Sequence[int]) -> int | None:
        """The number of tokens up to the first that ends the completion, that one included."""
        ends = (index + 1 for index, token in enumerate(ids) if token in self._tokenizer.eos_ids)
        end = next(ends, None)
        if self._stop and self._stop.complete(ids):  # the whole at once: most completions hold none
            for length in range(1, len(ids) if end is None else end):
                if self._stop.complete(ids[max(0, length - self._stop.tail) : length]):
                    return length
            return len(ids) if end is None else end
        return end

    def _refusal(self, ids: Sequence[int], finish_reason: object, stop_reason: object) -> UserError:
        return UserError(
            f"{self._engine} ended a sample after {len(ids)} tokens with finish_reason = {finish_reason!r}, "
            f"stop_reason = {stop_reason!r}; its last tokens are {list(ids[-4:])}",
            f"a sample ends with an end token ({', '.join(map(str, self._tokenizer.eos_ids))}), a stop string, or "
            f"after {self._max_tokens} tokens",
            "look for the cause in the engine's log; where a stop string was cut off, let the engine keep it",
        )
