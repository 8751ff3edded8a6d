"""From the model's output on padded sequences to one log-prob a completion."""

from __future__ import annotations

import torch
import torch.distributed as dist

from irpo_megatron.losses.log_probs import sequence_sums, token_log_probs
from irpo_megatron.training.batches import Sequences


def completion_log_probs(
    logits: torch.Tensor, sequences: Sequences, *, vocabulary: int, tensor_group: dist.ProcessGroup
) -> torch.Tensor:
    """log p(completion | prompt) of each sequence, summed over its tokens.

    Args:
        logits: [b, s - 1, vocabulary / TP].

    Returns:
        [b], fp32.
    """
    predicting = logits[sequences.target_rows, sequences.target_columns]
    tokens = token_log_probs(predicting, sequences.targets, vocabulary=vocabulary, group=tensor_group)
    return sequence_sums(tokens, sequences.target_rows, sequences.count)
