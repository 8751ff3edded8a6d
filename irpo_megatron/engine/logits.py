"""Logits of whole sequences, for those who compare models; training never makes them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from irpo_megatron.engine.inputs import model_input
from irpo_megatron.engine.parallel import Place
from irpo_megatron.engine.policy import Policy, Targets
from irpo_megatron.engine.streams import Stream


def logits(model: Policy, rows: Sequence[Sequence[int]], place: Place) -> torch.Tensor:
    """Logits behind every token of every row, one row after the other.

    Args:
        model: A single-process model.

    Returns:
        [tokens of all rows, padded vocabulary], fp32.
    """
    stream = Stream()
    for row in rows:
        stream.append(row)
    tokens = len(stream.tokens)
    inputs = model_input(stream, place)
    everything = torch.arange(tokens, device=place.device)
    targets = Targets(tokens=everything, predicted_by=everything, head=lambda hidden, weight, _: hidden @ weight.T)
    with torch.no_grad():
        found: torch.Tensor = model(
            inputs.tokens, inputs.positions, None, labels=targets, packed_seq_params=inputs.attention
        )
    return found.float()
