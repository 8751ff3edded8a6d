"""The choice of the next token: pure functions of logits and of uniform numbers that are named, not drawn in turn.

The logits of one row differ in their last bits with the shape of the batch that they were computed in. So each choice
comes with a verdict on whether it is *certain*: the same for all logits whose errors are within `ErrorBounds`. An
uncertain choice is made again, from exact logits (see `exact`). Both routes then lead to the choice that exact logits
would have made, and the token no longer depends on the batch.

Shapes: B rows, V token ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irpo_megatron.generation.protocol import SamplingSettings

# Rounding of the float64 sums over a vocabulary, far below any error of float32 logits.
_SUM_ERROR = 1e-12


@dataclass(frozen=True, slots=True)
class ErrorBounds:
    """How far a row's logits may lie from the exact ones, in machine epsilons of its largest (of 1 if all are below).

    Attributes:
        largest: Error of any logit.
        spread: Standard deviation of the errors, under the probabilities that the row gives its tokens.
    """

    largest: float
    spread: float


EXACT = ErrorBounds(0.0, 0.0)


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """The uniform number in [0, 1) that decides one token of each sample.

    It is the splitmix64 generator started at the sample's seed and read at a position: a counter-based generator, so
    a number can be had without those before it. int64 wraps around as the algorithm's uint64 does.

    Args:
        seeds: [B], int64.
        positions: [B], int64: 0 is the first token of a sample.

    Returns:
        [B], float64, with 53 random bits.
    """
    state = seeds + (positions + 1) * _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _shift_right(state, 31)
    return _shift_right(state, 11).double() * 2.0**-53


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`."""
    return (value + 2**63) % 2**64 - 2**63


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Shift in zeros from the left; torch's own shift repeats the sign bit."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def error_unit(logits: Tensor) -> Tensor:
    """What `ErrorBounds` count in: [..., V] -> [...], float64."""
    return logits.abs().amax(dim=-1).double().clamp(min=1.0) * torch.finfo(logits.dtype).eps


def measure_errors(logits: Tensor, exact: Tensor, temperature: float) -> ErrorBounds:
    """The largest errors that some rows have.

    Args:
        logits: [..., V].
        exact: The same, float64.
        temperature: That of the probabilities; at 0 the spread is that of the largest error.
    """
    errors = (logits.double() - exact) / error_unit(logits).unsqueeze(-1)
    largest = float(errors.abs().max())
    if temperature == 0:
        return ErrorBounds(largest, largest)
    probabilities = (exact / temperature).softmax(dim=-1)
    mean = (probabilities * errors).sum(dim=-1, keepdim=True)
    variance = (probabilities * (errors - mean).square()).sum(dim=-1)
    return ErrorBounds(largest, float(variance.max().sqrt()))


def greedy(logits: Tensor, bounds: ErrorBounds) -> tuple[Tensor, Tensor]:
    """The most probable token, the lowest id among equals.

    Args:
        logits: [B, V].

    Returns:
        Token ids [B], int64, and whether each is certain [B], bool: False also where the logits are not finite.
    """
    best = logits.amax(dim=-1, keepdim=True)
    tokens = (logits == best).int().argmax(dim=-1)
    # Counting the tokens in reach, itself included, treats ties and NaN (none in reach) alike: not exactly one.
    reach = 2 * bounds.largest * error_unit(logits).unsqueeze(-1)
    in_reach = logits.double() >= best.double() - reach
    return tokens, in_reach.sum(dim=-1) == 1


def sample(
    logits: Tensor, uniforms: Tensor, bounds: ErrorBounds, *, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling over token ids in ascending order.

    Args:
        logits: [B, V].
        uniforms: [B], float64, in [0, 1).
        temperature: Above 0.
        top_p: In (0, 1]; see `nucleus`.

    Returns:
        Token ids [B], int64, and whether each is certain [B], bool: False also where the logits are not finite.
    """
    scaled = logits.double() / temperature
    unit = error_unit(logits) / temperature
    weights, in_doubt = scaled.softmax(dim=-1), torch.zeros_like(unit)
    if top_p < 1:
        kept, doubtful = nucleus(scaled, weights, bounds.largest * unit, top_p)
        weights, in_doubt = weights * kept, 2 * doubtful / top_p
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = uniforms.unsqueeze(-1) * total
    # Rounding may lift the target to the total: the second search holds it to the last token that has any weight.
    tokens = torch.minimum(
        torch.searchsorted(cumulative, target, right=True), torch.searchsorted(cumulative, total.contiguous())
    ).clamp(max=logits.shape[-1] - 1)
    upper = cumulative.gather(-1, tokens)
    edges = torch.cat([upper - weights.gather(-1, tokens), upper], dim=-1) / total
    margins = _edge_error(edges, unit.unsqueeze(-1), bounds, top_p) + in_doubt.unsqueeze(-1) + _SUM_ERROR
    certain = ((edges - uniforms.unsqueeze(-1)).abs() > margins).all(dim=-1)
    return tokens.squeeze(-1), certain


def _edge_error(edges: Tensor, unit: Tensor, bounds: ErrorBounds, top_p: float) -> Tensor:
    """How far errors within their bounds can move values of the CDF.

    An error of at most e in every scaled logit multiplies the odds of any set of tokens by at most exp(2 e), so it
    moves its probability c by at most c (1 - c) (exp(2 e) - 1). And the derivative of c along the errors is their
    covariance with the set's indicator, at most sqrt(c (1 - c)) times their standard deviation; the probabilities
    that both are taken by change on the way by exp(2 e) at most. A nucleus has at least `top_p` of the probabilities
    by which the deviation is bounded.
    """
    variance = edges * (1 - edges)
    growth = torch.expm1(2 * bounds.largest * unit)
    return torch.minimum(variance * growth, variance.sqrt() * (bounds.spread / top_p**0.5) * unit * (1 + growth))


def nucleus(scaled: Tensor, probabilities: Tensor, error: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of most probable tokens with a probability of at least `top_p`; the lower id first among equals.

    Args:
        scaled: [B, V], logits over temperature, float64.
        probabilities: [B, V], their softmax.
        error: [B], bound on the error of `scaled`.
        top_p: Below 1.

    Returns:
        The set [B, V], bool, and the probability [B] of the tokens that an error within the bound could move across
        its edge.
    """
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.gather(-1, ids).cumsum(dim=-1)
    size = (cumulative < top_p).sum(dim=-1, keepdim=True) + 1
    ranks = torch.arange(scaled.shape[-1], device=scaled.device)
    kept = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, ids, ranks < size)

    # The edge may be any rank whose sum can reach top_p under the error. A token clearly above the first such rank is
    # inside whatever the error, one clearly below the last is outside: what lies between is in doubt.
    slack = top_p * (1 - top_p) * torch.expm1(2 * error).unsqueeze(-1) + _SUM_ERROR
    last_rank = scaled.shape[-1] - 1
    first_edge = (cumulative < top_p - slack).sum(dim=-1, keepdim=True).clamp(max=last_rank)
    last_edge = (cumulative < top_p + slack).sum(dim=-1, keepdim=True).clamp(max=last_rank)
    reach = 2 * error.unsqueeze(-1)
    between = (scaled <= ordered.gather(-1, first_edge) + reach) & (scaled >= ordered.gather(-1, last_edge) - reach)
    # A token alone in there is the edge itself, with nothing to change places with.
    doubtful = torch.where(between.sum(dim=-1) > 1, (probabilities * between).sum(dim=-1), 0.0)
    return kept, doubtful


def choose(logits: Tensor, uniforms: Tensor, settings: SamplingSettings, bounds: ErrorBounds) -> tuple[Tensor, Tensor]:
    """Token ids [B] and whether each is certain [B], by the settings' temperature and nucleus."""
    if settings.temperature == 0:
        return greedy(logits, bounds)
    return sample(logits, uniforms, bounds, temperature=settings.temperature, top_p=settings.top_p)
