"""Equation 1 of the paper (v3), as pure functions of per-sequence log-probs.

    loss = - log sigmoid( beta [log p(w|x) - log p_ref(w|x)] - beta [log p(l|x) - log p_ref(l|x)] )
           - alpha log p(w|x) / |w|

w and l are the winner's and the loser's completion, |w| the winner's number of tokens. Log-probs are sums over
completion tokens; the prompt's tokens appear nowhere. Every function returns one value a pair: whoever calls sums them
and divides by the pairs of the *global* batch, so that the result is the same for every micro-batch size and layout.
"""

from __future__ import annotations

import torch


def dpo_margin(
    *,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """The argument of the sigmoid in equation 1: beta x (how much more the policy prefers w over l than the reference).

    Args:
        chosen: [pairs] log p(w|x) under the policy, summed over tokens; the other three likewise.
        beta: Inverse temperature.

    Returns:
        [pairs]; exactly 0 where policy and reference are the same model.
    """
    return beta * ((chosen - reference_chosen) - (rejected - reference_rejected))


def dpo_term(margin: torch.Tensor) -> torch.Tensor:
    """- log sigmoid(margin), [pairs]; ln 2 where the margin is 0."""
    return -torch.nn.functional.logsigmoid(margin)


def nll_term(chosen: torch.Tensor, chosen_tokens: torch.Tensor) -> torch.Tensor:
    """- log p(w|x) / |w|: the winner's NLL, a mean over its own tokens.

    Args:
        chosen: [pairs] log p(w|x), summed over the completion's tokens.
        chosen_tokens: [pairs] |w|, at least 1.

    Returns:
        [pairs].
    """
    return -chosen / chosen_tokens
