"""What a step does on a CPU between its large products, compiled.

As series of torch's operations this takes two to three times as long: each of them reads and writes what the last one
left, and attention multiplies thousands of small matrices. numba compiles a function when it is first called, and keeps
the result on disk.

Numbers in bf16 come as the 16 bits that they are, since numpy has no such type; arithmetic is in float32 throughout.

Shapes: B rows, E hidden size, F feed-forward size, H heads, K key-value heads, D head size, P pages of PAGE tokens.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

# Sums may be taken in any order, so in vectors; but numbers that are not finite stay what they are.
_FAST = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy", "nogil": True}
_AT_ONCE = 4  # tokens that are multiplied side by side: a page holds whole groups of them
_LOWEST, _SMALLEST = np.float32(-1e30), np.float32(-87)
_LN_2 = np.float32(355 / 512), np.float32(math.log(2) - 355 / 512)


@njit(cache=True, **_FAST)
def attend(
    heads,
    cos,
    sin,
    scaling,
    keys,
    values,
    prompt_keys,
    prompt_values,
    pages,
    counts,
    prompt_pages,
    prompt_tokens,
    size,
    seen,
):
    """Keep the new token's key and value of every row, and let its queries see all tokens of the row up to it.

    Args:
        heads: [B, H + 2 K, D]: queries, keys and values before their rotation; float32, or uint16 for bf16.
        cos: [B, D], float32: of each row's position.
        sin: [B, D], float32.
        scaling: Of the queries, float32.
        keys: [P, K, PAGE, D], of the numbers of `heads`; the new tokens' are written to it.
        values: [P, K, PAGE, D]; likewise.
        pages: [B, any]: each row's own pages, in order.
        counts: [B]: own tokens that each row has in them already.
        prompt_keys: [P', K, PAGE, D].
        prompt_values: [P', K, PAGE, D].
        prompt_pages: [B, any]: the pages of each row's prompt, in order.
        prompt_tokens: [B]: tokens in them.
        size: A tuple of D numbers, whose length is thus known to the compiler.
        seen: [B, H, D], of the numbers of `heads`: the result.
    """
    row_count, head_count, head_size = seen.shape
    kv_heads, page_tokens = keys.shape[1], keys.shape[2]
    queries, averages = np.empty((head_count, head_size), np.float32), np.empty((head_count, head_size), np.float32)
    scores = np.empty((head_count, (prompt_tokens + counts).max() + 1 + _AT_ONCE), np.float32)
    totals = np.empty(head_count, np.float32)
    for row in range(row_count):
        page, place = pages[row, counts[row] // page_tokens], counts[row] % page_tokens
        shared_tokens, tokens = prompt_tokens[row], prompt_tokens[row] + counts[row] + 1
        averages[:] = 0
        for head in range(head_count):
            for at in range(head_size // 2):
                lower, upper = _rotate(heads, cos, sin, row, head, at)
                queries[head, at], queries[head, at + head_size // 2] = lower * scaling, upper * scaling
        for kv_head in range(kv_heads):
            key, value = head_count + kv_head, head_count + kv_heads + kv_head
            for at in range(head_size // 2):
                other = at + head_size // 2
                lower, upper = _rotate(heads, cos, sin, row, key, at)
                keys[page, kv_head, place, at] = _narrow(lower, heads[row, key, at])
                keys[page, kv_head, place, other] = _narrow(upper, heads[row, key, at])
            for at in range(head_size):
                values[page, kv_head, place, at] = heads[row, value, at]
        for start in range(0, shared_tokens, page_tokens):
            _score(queries, prompt_keys, prompt_pages[row, start // page_tokens], scores, start, shared_tokens, size)
        for start in range(shared_tokens, tokens, page_tokens):
            _score(queries, keys, pages[row, (start - shared_tokens) // page_tokens], scores, start, tokens, size)
        for head in range(head_count):
            totals[head] = _soften(scores, head, tokens)
        for start in range(0, shared_tokens, page_tokens):
            shared_page = prompt_pages[row, start // page_tokens]
            _average(scores, prompt_values, shared_page, averages, start, shared_tokens, size)
        for start in range(shared_tokens, tokens, page_tokens):
            _average(scores, values, pages[row, (start - shared_tokens) // page_tokens], averages, start, tokens, size)
        for head in range(head_count):
            share = np.float32(1) / totals[head]
            for at in range(head_size):
                seen[row, head, at] = _narrow(averages[head, at] * share, seen[row, head, at])


@njit(cache=True, **_FAST)
def add_and_norm(hidden, change, weight, epsilon, normed):
    """hidden += change, in place; normed = the root-mean-square norm of it.

    Args:
        hidden: [B, E], as are `change` and `normed`; float32, or uint16 for bf16.
        weight: [E].
        epsilon: float32.
    """
    rows, size = hidden.shape
    for row in range(rows):
        squares = np.float32(0)
        for at in range(size):
            hidden[row, at] = _narrow(_widen(hidden[row, at]) + _widen(change[row, at]), hidden[row, at])
            squares += _widen(hidden[row, at]) * _widen(hidden[row, at])
        scale = np.float32(1) / np.sqrt(squares / np.float32(size) + epsilon)
        for at in range(size):
            normed[row, at] = _narrow(_widen(hidden[row, at]) * scale * _widen(weight[at]), normed[row, at])


@njit(cache=True, **_FAST)
def gate(gate_up, gated):
    """gated [B, F] = silu of the first half of gate_up [B, 2 F], times the second; float32, or uint16 for bf16."""
    rows, size = gated.shape
    for row in range(rows):
        for at in range(size):
            number = _widen(gate_up[row, at])
            small = _exp(-abs(number))
            share = (small if number < 0 else np.float32(1)) / (np.float32(1) + small)
            gated[row, at] = _narrow(number * share * _widen(gate_up[row, at + size]), gated[row, at])


@njit(**_FAST)
def _rotate(heads, cos, sin, row, head, at):
    """The numbers `at` and at + D / 2 of a head, turned by their angle."""
    half = heads.shape[2] // 2
    lower, upper = _widen(heads[row, head, at]), _widen(heads[row, head, at + half])
    return lower * cos[row, at] - upper * sin[row, at], upper * cos[row, at] + lower * sin[row, at]


@njit(**_FAST)
def _score(queries, keys, page, scores, start, end, size):
    """Queries [H, D] times the keys of a page, up to the token `end` of the row: scores[:, start : ...].

    A few scores after these are of what else lies in the page.
    """
    group = len(queries) // keys.shape[1]
    for head in range(len(queries)):
        kv_head = head // group
        for token in range(0, min(end - start, keys.shape[2]), _AT_ONCE):
            first = second = third = fourth = np.float32(0)
            for at in range(len(size)):
                asked = queries[head, at]
                first += asked * _widen(keys[page, kv_head, token, at])
                second += asked * _widen(keys[page, kv_head, token + 1, at])
                third += asked * _widen(keys[page, kv_head, token + 2, at])
                fourth += asked * _widen(keys[page, kv_head, token + 3, at])
            scores[head, start + token], scores[head, start + token + 1] = first, second
            scores[head, start + token + 2], scores[head, start + token + 3] = third, fourth


@njit(**_FAST)
def _average(weights, values, page, averages, start, end, size):
    """Add the values of a page, up to the token `end` of the row, to averages [H, D], by weights[:, start : ...]."""
    group = len(averages) // values.shape[1]
    zero = np.float32(0)
    for head in range(len(averages)):
        kv_head = head // group
        for token in range(0, min(end - start, values.shape[2]), _AT_ONCE):
            at_token = start + token
            first = weights[head, at_token]
            second = weights[head, at_token + 1] if at_token + 1 < end else zero
            third = weights[head, at_token + 2] if at_token + 2 < end else zero
            fourth = weights[head, at_token + 3] if at_token + 3 < end else zero
            for at in range(len(size)):
                averages[head, at] += (
                    first * _widen(values[page, kv_head, token, at])
                    + second * _widen(values[page, kv_head, token + 1, at])
                ) + (
                    third * _widen(values[page, kv_head, token + 2, at])
                    + fourth * _widen(values[page, kv_head, token + 3, at])
                )


@njit(**_FAST)
def _soften(scores, head, tokens):
    """Turn scores[head] into exp of their distances to the largest, in place, and return the sum."""
    largest, total = _largest(scores, head, tokens), np.float32(0)
    for token in range(tokens):
        weight = _exp(scores[head, token] - largest)
        scores[head, token] = weight
        total += weight
    return total


@njit(fastmath=True, nogil=True)
def _largest(scores, head, tokens):
    """Of scores[head]; any number where one of them is NaN, which is seen elsewhere."""
    largest = _LOWEST
    for token in range(tokens):
        largest = max(largest, scores[head, token])
    return largest


@njit(**_FAST)
def _exp(exponent):
    """exp of a number that is not above 0, to 2 in 10^7, in vector instructions; the C library's is not.

    Below exp(-87) it is exp(-87), which is nothing beside the 1 that it is added to.
    """
    exponent = _SMALLEST if exponent < _SMALLEST else exponent  # written so that NaN stays
    # 2^whole exp(rest), rest in [-ln 2 / 2, ln 2 / 2]; ln 2 in two parts, so that whole x ln 2 is not rounded.
    whole = np.int32(exponent * np.float32(math.log2(math.e)) - np.float32(0.5))  # towards 0, so to the nearest
    rest = exponent - np.float32(whole) * _LN_2[0] - np.float32(whole) * _LN_2[1]
    series = np.float32(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * rest + np.float32(factor)
    return series * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)


def _widen(number):
    """A stored number as float32."""


@overload(_widen, inline="always")
def _widen_compiled(number):
    if isinstance(number, types.Integer):
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


def _narrow(number, like):
    """A float32 as it is stored, to the nearest."""


@overload(_narrow, inline="always")
def _narrow_compiled(number, like):
    if isinstance(like, types.Integer):

        def to_bf16(number, like):
            bits = np.float32(number).view(np.uint32)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return to_bf16
    return lambda number, like: number
