"""Equation 1 and AdamW written again, in float64 on transformers and plain PyTorch, sequence by sequence.

Nothing of the package is used but the `Pair` type: no padding, no batching, no parallelism, no shared code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from irpo_megatron.records import Pair


@dataclass(frozen=True)
class Trajectory:
    """What training goes through."""

    steps: list[dict[str, float]]
    """Means over the pairs of each step's batch, and the gradient norm before clipping."""
    weights: dict[str, torch.Tensor]
    """After the last step, under their names in the folder."""


def sequence_log_prob(model: torch.nn.Module, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """log p(completion | prompt), a sum over the completion's tokens."""
    tokens = torch.tensor([[*prompt, *completion]])
    log_probs = torch.log_softmax(model(tokens).logits[0].double(), dim=-1)
    total = torch.zeros((), dtype=torch.float64)
    for offset, token in enumerate(completion):
        total = total + log_probs[len(prompt) + offset - 1, token]
    return total


def load_float64(folder: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    # transformers gives the padding token's embedding no gradient; inside a completion it is a token like any other.
    model.model.embed_tokens.padding_idx = None
    return model


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The matrices here are so small that threads wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@one_thread()
def trajectory(
    folder: Path,
    batches: list[list[Pair]],
    *,
    alpha: float,
    beta: float,
    learning_rate: float,
    warmup_steps: int,
    clip: float,
    weight_decay: float = 0.0,
    epsilon: float = 1e-8,
    with_dpo: bool = True,
) -> Trajectory:
    """One optimizer step on each of the given batches, in order, starting from the folder's weights."""
    policy, reference = load_float64(folder), load_float64(folder)
    decayed = [p for n, p in policy.named_parameters() if p.ndim > 1]
    plain = [p for n, p in policy.named_parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.999),
        eps=epsilon,
    )
    of_reference: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    history = []
    for step, batch in enumerate(batches):
        adam.zero_grad()
        sums = {"loss": 0.0, "dpo": 0.0, "nll": 0.0, "chosen_log_prob": 0.0, "rejected_log_prob": 0.0}
        for pair in batch:
            chosen = sequence_log_prob(policy, pair.prompt_ids, pair.chosen_ids)
            nll = -chosen / len(pair.chosen_ids)
            loss = alpha * nll
            dpo = rejected = torch.zeros(())
            if with_dpo:
                rejected = sequence_log_prob(policy, pair.prompt_ids, pair.rejected_ids)
                if pair.pair_id not in of_reference:
                    with torch.no_grad():
                        of_reference[pair.pair_id] = (
                            sequence_log_prob(reference, pair.prompt_ids, pair.chosen_ids),
                            sequence_log_prob(reference, pair.prompt_ids, pair.rejected_ids),
                        )
                reference_chosen, reference_rejected = of_reference[pair.pair_id]
                margin = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
                dpo = -torch.log(1 / (1 + torch.exp(-margin)))
                loss = loss + dpo
            (loss / len(batch)).backward()
            values = {"loss": loss, "dpo": dpo, "nll": nll, "chosen_log_prob": chosen, "rejected_log_prob": rejected}
            for name, value in values.items():
                sums[name] += float(value.detach()) / len(batch)
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), clip) if clip else torch.zeros(())
        for group in adam.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / warmup_steps if warmup_steps else 1.0)
        adam.step()
        history.append({**sums, "gradient_norm": float(norm)})
    # Tied embeddings are one parameter here, too.
    weights = {name: parameter.detach() for name, parameter in policy.named_parameters()}
    return Trajectory(history, weights)
