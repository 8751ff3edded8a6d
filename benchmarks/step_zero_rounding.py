"""How far rounding alone moves a pair's log-ratio: the numbers behind the guard at step 0 (docs/precision.md).

.venv/bin/python benchmarks/step_zero_rounding.py MODEL_FOLDER --prompt "Q: What is 2 + 2? A:"

Completions are sampled from the model and their log-probs summed twice, in two batchings, as by the reference pass and
by the first training step. On a CPU, FP8 is imitated: what goes into a product is rounded as Transformer Engine does,
the product itself is bf16.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

E4M3_MAX = 448.0
Round = Callable[[torch.Tensor], torch.Tensor]
Row = tuple[list[int], list[int]]  # prompt, completion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", default="The ")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=250, help="completions have 60 to 100 % of this")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=16, help="in the global batch")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    wide = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    prompt = AutoTokenizer.from_pretrained(arguments.model).encode(arguments.prompt)
    rows = sample(wide, prompt, arguments.samples, arguments.tokens)
    shuffled = torch.randperm(len(rows)).tolist()

    def batchings(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        return log_probs(model, rows, range(len(rows)), 8, 0), log_probs(model, rows, shuffled, 6, 40)

    narrow = copy.deepcopy(wide).bfloat16()
    first, second = batchings(narrow)
    differences = {
        "fp32, two batchings": torch.sub(*batchings(wide)),
        "bf16, two batchings": first - second,
        "bf16 and fp32, same weights": first - log_probs(copy.deepcopy(narrow).float(), rows, range(len(rows)), 8, 0),
    }
    for name, (activations, weights) in RECIPES.items():
        differences[f"{name}, two batchings"] = torch.sub(*batchings(imitate(narrow, activations, weights)))
    print("| | spread of a pair's log-ratio, nats | largest deviation of the DPO term from ln 2 |\n|---|---|---|")
    for name, difference in differences.items():
        spread, largest = of_pairs(difference, arguments.beta, arguments.pairs)
        print(f"| {name} | {spread:.3f} | {largest:.4f} |")


def sample(model: torch.nn.Module, prompt: list[int], samples: int, tokens: int) -> list[Row]:
    """Completions of uneven length, at temperature 0.8."""
    ids = torch.tensor([prompt] * samples)
    drawn = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=True, temperature=0.8, top_k=0
    )
    lengths = torch.randint(math.ceil(0.6 * tokens), tokens + 1, (samples,)).tolist()
    return [
        (prompt, row[len(prompt) : len(prompt) + length]) for row, length in zip(drawn.tolist(), lengths, strict=True)
    ]


@torch.no_grad()
def log_probs(
    model: torch.nn.Module, rows: Sequence[Row], order: Sequence[int], batch_size: int, padding: int
) -> torch.Tensor:
    """Summed log-prob of each row's completion, computed `batch_size` rows at a time, padded by `padding` too many."""
    sums = torch.zeros(len(rows), dtype=torch.float64)
    for start in range(0, len(order), batch_size):
        batch = [rows[index] for index in order[start : start + batch_size]]
        ids = torch.zeros(len(batch), max(len(p) + len(c) for p, c in batch) + padding, dtype=torch.long)
        for line, (prompt, completion) in zip(ids, batch, strict=True):
            line[: len(prompt) + len(completion)] = torch.tensor([*prompt, *completion])
        each = torch.log_softmax(model(ids, use_cache=False).logits[:, :-1].float(), -1)
        each = each.gather(-1, ids[:, 1:, None])[..., 0].double()
        for number, (prompt, completion) in enumerate(batch):
            first = len(prompt) - 1
            sums[order[start + number]] = each[number, first : first + len(completion)].sum()
    return sums


def of_pairs(difference: torch.Tensor, beta: float, pairs: int) -> tuple[float, float]:
    """(standard deviation of a random pair's log-ratio, largest deviation from ln 2 among 2,000 random batches)."""
    chosen = torch.randint(len(difference), (2000, pairs))
    rejected = (chosen + torch.randint(1, len(difference), (2000, pairs))) % len(difference)
    ratios = difference[chosen] - difference[rejected]
    dpo = functional.softplus(-beta * ratios).mean(1)
    return float(ratios.std()), float((dpo - math.log(2)).abs().max())


def by_tensor(values: torch.Tensor) -> torch.Tensor:
    return to_e4m3(values, E4M3_MAX / values.abs().max())


def by_blocks(rows: int, columns: int) -> Round:
    """One scale, a power of two, for every `rows` x `columns` of a matrix (the last dimension, and all before it)."""

    def round_(values: torch.Tensor) -> torch.Tensor:
        matrix = values.reshape(-1, values.shape[-1])
        high, wide = matrix.shape
        padded = functional.pad(matrix, (0, -wide % columns, 0, -high % rows))
        blocks = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
        largest = blocks.abs().amax((1, 3), keepdim=True).clamp_min(1e-12)
        rounded = to_e4m3(blocks, torch.exp2(torch.floor(torch.log2(E4M3_MAX / largest))))
        return rounded.reshape(padded.shape)[:high, :wide].reshape(values.shape)

    return round_


def to_e4m3(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (values * scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() / scale


# How activations and weights are rounded.
RECIPES: dict[str, tuple[Round, Round]] = {
    "tensorwise": (by_tensor, by_tensor),
    "blockwise": (by_blocks(1, 128), by_blocks(128, 128)),
    "mxfp8": (by_blocks(1, 32), by_blocks(1, 32)),
}


def imitate(model: torch.nn.Module, activations: Round, weights: Round) -> torch.nn.Module:
    """A copy of a bf16 model whose decoder layers multiply rounded matrices."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear)):
            linear.weight.data = weights(linear.weight.data.float()).bfloat16()
            linear.register_forward_pre_hook(lambda _, inputs: (activations(inputs[0].float()).bfloat16(),))
    return model


if __name__ == "__main__":
    main()
