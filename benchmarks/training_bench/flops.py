"""What a step has to compute, and what the machine can: the model's FLOPs on useful tokens, and matrix products.

Counted: the products of the decoder's linear layers, causal attention (the half that is not masked), and the output
layer where a completion token is predicted; each forward once and backward twice. Not counted: padding, a prompt
computed twice, anything computed again, norms, softmax, the optimizer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from irpo_megatron.config import RandomModel
from irpo_megatron.records import Pair

FORWARD_AND_BACKWARD = 3
PRODUCT_REPEATS = 5


def useful_flops(shape: RandomModel, vocabulary: int, pairs: Sequence[Pair]) -> float:
    """FLOPs of one pass over the pairs, prompts once."""
    head = shape.hidden_size // shape.heads
    attention_weights = 2 * shape.hidden_size * (shape.hidden_size + shape.kv_heads * head)  # q and o, k and v
    layer_weights = attention_weights + 3 * shape.hidden_size * shape.ffn_size
    inputs = scored = attended = 0
    for pair in pairs:
        prompt = len(pair.prompt_ids)
        attended += prompt * (prompt + 1) // 2
        inputs += prompt
        for completion in (pair.chosen_ids, pair.rejected_ids):
            scored += len(completion)
            fed = len(completion) - 1  # the end token predicts nothing
            inputs += fed
            attended += fed * prompt + fed * (fed + 1) // 2
    linear = 2 * layer_weights * shape.layers * inputs
    attention = 4 * shape.hidden_size * shape.layers * attended  # scores, and the weighted sum of values
    output = 2 * shape.hidden_size * vocabulary * scored
    return float(FORWARD_AND_BACKWARD * (linear + attention + output))


def best_product(shape: RandomModel, vocabulary: int, *, threads: int) -> float:
    """FLOP/s of the fastest of several matrix products, square ones and the model's own, on the device in use."""
    torch.set_num_threads(threads)
    on_cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_cuda else ("cpu", torch.float32)
    rows = 16384 if on_cuda else 2048
    sizes = [
        *((side, side, side) for side in ((4096, 8192) if on_cuda else (1024, 2048, 3072))),
        (rows, shape.hidden_size, shape.hidden_size),
        (rows, shape.hidden_size, shape.ffn_size),
        (rows, shape.ffn_size, shape.hidden_size),
        (rows, shape.hidden_size, vocabulary),
    ]
    return max(_product(size, device, dtype) for size in sizes)


def _product(size: tuple[int, int, int], device: str, dtype: torch.dtype) -> float:
    m, k, n = size
    left = torch.randn(m, k, device=device, dtype=dtype)
    right = torch.randn(k, n, device=device, dtype=dtype)
    out = left @ right
    best = float("inf")
    for _ in range(PRODUCT_REPEATS):
        _wait()
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        _wait()
        best = min(best, time.perf_counter() - started)
    return 2.0 * m * k * n / best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
