"""Equation 1 and AdamW written again, in float64 on transformers and plain PyTorch, sequence by sequence.

Nothing of the package is used but the `Pair` type: no padding, no batching, no parallelism, no shared code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from irpo_megatron.records import Pair


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
    with_dpo: bool = True,
) -> list[dict[str, float]]:
    """Losses of each optimizer step on the given batches, in order, starting from the folder's weights."""
    policy, reference = load_float64(folder), load_float64(folder)
    decayed = [p for n, p in policy.named_parameters() if p.ndim > 1]
    plain = [p for n, p in policy.named_parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
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
                with torch.no_grad():
                    reference_chosen = sequence_log_prob(reference, pair.prompt_ids, pair.chosen_ids)
                    reference_rejected = sequence_log_prob(reference, pair.prompt_ids, pair.rejected_ids)
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
    return history
