"""What the choice of a token would be without rounding: the same model in float64, over whole sequences at once.

The logits of a step depend in their last bits on the rows that are decoded beside it. Where such an error could have
decided, the choice is made again from float64 logits, whose own error decides about one token in 10^10. So a token
depends neither on the batch nor on the machine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from irpo_megatron.generation.decoding.rows import Rows
from irpo_megatron.generation.decoding.sampling import EXACT, ErrorBounds, choose, measure_errors, uniform
from irpo_megatron.generation.protocol import SamplingSettings

# Errors are measured on so many random sequences of so many tokens, and the bounds are so many times the largest. There
# is one spread a row, so their largest is less well known.
_SEQUENCES, _TOKENS = 16, 64
_SAFETY, _SPREAD_SAFETY = 3.0, 4.0


class ExactModel:
    """A copy of a model in float64: 8 bytes a parameter."""

    def __init__(self, model: Any) -> None:
        self._rounded, self._model = model, copy.deepcopy(model).double()
        self._bounds: dict[float, ErrorBounds] = {}

    def bounds(self, temperature: float) -> ErrorBounds:
        """On the errors of the model's own logits."""
        if temperature not in self._bounds:
            tokens = min(_TOKENS, self._model.config.max_position_embeddings)
            draw = torch.Generator().manual_seed(0)
            ids = torch.randint(self._model.config.vocab_size, (_SEQUENCES, tokens), generator=draw)
            ids = ids.to(self._model.device)
            logits = self._rounded(input_ids=ids, use_cache=False).logits
            measured = measure_errors(logits, self._logits(ids), temperature)
            self._bounds[temperature] = ErrorBounds(_SAFETY * measured.largest, _SPREAD_SAFETY * measured.spread)
        return self._bounds[temperature]

    def corrections(
        self, rows: Rows, prompts: Sequence[tuple[int, ...]], settings: SamplingSettings
    ) -> Iterator[tuple[int, int, int]]:
        """Where doubtful tokens are not what exact arithmetic chooses.

        Args:
            prompts: The prompt of each row.

        Yields:
            (row, place in its completion, right token): the first of each row that has one. What follows it was
            chosen after a wrong token.
        """
        places = torch.arange(rows.doubtful.shape[1], device=rows.doubtful.device)
        last = (rows.doubtful * places).amax(dim=1).tolist()
        sequences = [  # a token is chosen from those before it
            torch.tensor([*prompt, *completion[:count]])
            for prompt, completion, count in zip(prompts, rows.completions.tolist(), last, strict=True)
        ]
        ids = pad_sequence(sequences, batch_first=True).to(rows.doubtful.device)
        row, place = rows.doubtful.nonzero(as_tuple=True)
        logits = self._logits(ids, row, rows.prompt_tokens[row] + place)
        tokens, _ = choose(logits, uniform(rows.seeds[row], place), settings, EXACT)
        wrong = tokens != rows.completions[row, place]
        seen = set[int]()
        for number, at, token in zip(row[wrong].tolist(), place[wrong].tolist(), tokens[wrong].tolist(), strict=True):
            if number not in seen:
                seen.add(number)
                yield number, at, token

    def _logits(self, ids: Tensor, *index: Tensor) -> Tensor:
        """The logits after the tokens at `index` of sequences [sequences, L]; after every one without an index."""
        hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits: Tensor = self._model.get_output_embeddings()(hidden[index] if index else hidden)
        return logits
