"""Megatron-Core's `GPTModel`, with log-probs of given tokens as its output instead of logits of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden states [n, hidden size], this rank's rows of the output matrix, token ids [n]) -> [n], such as log-probs."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The tokens whose log-probs are wanted."""

    tokens: torch.Tensor
    """[n] token ids."""
    predicted_by: torch.Tensor
    """[n] which of this rank's tokens predicts each; one token can predict several, behind a shared prompt."""
    head: Head
    """What computes them; its gradient in the hidden states is summed over the tensor-parallel ranks afterwards."""


class _OutputLayer(ColumnParallelLinear):  # type: ignore[misc]
    """The output matrix, applied to the predicting positions only."""

    def forward(self, hidden: torch.Tensor, targets: Targets, *, shared_weight: torch.Tensor | None) -> torch.Tensor:
        """log p of every target, [n], fp32.

        Args:
            hidden: [t, 1, hidden size]; under sequence parallelism this rank's slice of the tokens.
            shared_weight: The embedding, where it is the output matrix too.
        """
        weight = self.weight if shared_weight is None else shared_weight
        # Each rank's gradient in the hidden states comes from its own columns of the vocabulary. These two sum it.
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=self.tp_group)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=self.tp_group)
        predicting = hidden[:, 0].index_select(0, targets.predicted_by)
        return targets.head(predicting, weight, targets.tokens)


class Policy(GPTModel):  # type: ignore[misc]
    """This rank's part of the model.

    Called as `GPTModel` is, with `Targets` as its labels: the last pipeline stage answers with their log-probs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.post_process:
            # The same parameter, used otherwise. It stays a module that is called, not a weight that is read: the
            # hooks that wait for gathered parameters hang on calls.
            self.output_layer.__class__ = _OutputLayer

    def _postprocess(self, hidden_states: torch.Tensor, *, labels: Targets, **_: Any) -> torch.Tensor:
        if not self.post_process:
            return hidden_states
        shared = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        log_probs: torch.Tensor = self.output_layer(hidden_states, labels, shared_weight=shared)
        return log_probs
