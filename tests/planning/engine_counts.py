"""What the engine computes and keeps for a micro-batch of pairs, counted while it does so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from irpo_megatron.config import Config, DataConfig, ModelConfig
from irpo_megatron.planning.batches import MicroBatch, pair_batch
from irpo_megatron.records import Pair

MEDIUM: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 352,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
TINY = MEDIUM | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
LENGTHS = [(40, 60, 80), (70, 30, 50), (20, 90, 90), (55, 61, 47)]


def config_of(**sections: Any) -> Config:
    """A configuration that says no more than `sections`."""
    return Config(
        name="plan",
        task="gsm8k",
        model=ModelConfig(path="nowhere"),
        data=DataConfig(train="train.jsonl", test="test.jsonl"),
        **sections,
    )


def expected_batch(lengths: Sequence[tuple[int, int, int]], *, shared: bool) -> MicroBatch:
    """The planner's counts of such pairs; where prompts are shared it knows a pair's mean length only."""
    batches = [
        batch
        for prompt, chosen, rejected in lengths
        for batch in (
            [pair_batch(prompt, (chosen + rejected) / 2, shared=True)]
            if shared
            else [pair_batch(prompt, length, shared=False, completions=1) for length in (chosen, rejected)]
        )
    ]
    sums = {name: sum(getattr(batch, name) for batch in batches) for name in vars(batches[0])}
    return MicroBatch(**{**sums, "shared": shared})


def pairs_of(lengths: Sequence[tuple[int, int, int]]) -> list[Pair]:
    """Pairs of such prompts, chosen and rejected completions."""
    return [
        Pair(
            pair_id=f"pair-{number}",
            prompt_id=f"train-{number}",
            prompt="",
            chosen="",
            rejected="",
            prompt_ids=tuple(range(prompt)),
            chosen_ids=tuple(range(chosen)),
            rejected_ids=tuple(range(rejected)),
            chosen_sample=0,
            rejected_sample=1,
            held_out=False,
        )
        for number, (prompt, chosen, rejected) in enumerate(lengths)
    ]


def run_all(cases: Sequence[tuple[Config, dict[str, Any], bool]]) -> list[tuple[float, float]]:
    """(configuration, config.json, whether prompts are shared) of one layout -> this rank's counts.

    Returns:
        FLOPs of a forward and backward pass, and bytes kept between the two, without the logits.
    """
    from irpo_megatron.engine.parallel import parallel_world

    with parallel_world(cases[0][0].parallel, threads=1) as place:
        return [_run(replace(place, precision=case[0].precision), *case) for case in cases]


def _run(place: Any, config: Config, model: dict[str, Any], shared: bool) -> tuple[float, float]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    from irpo_megatron.engine.architecture import read_architecture
    from irpo_megatron.engine.model import as_computed, build_model
    from irpo_megatron.training.batches import Batching, WeightedPair, pair_batch
    from irpo_megatron.training.sequences import log_prob_head

    aten = torch.ops.aten
    # Operators that the counter does not know, as those that it knows.
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
        aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1],
    }
    architecture = read_architecture(model)
    (policy,) = build_model(architecture, place, recompute=config.training.recompute)
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in weights:
            kept[pointer] = tensor  # alive, so that no other tensor gets its place
        return tensor

    batch = pair_batch(
        [
            WeightedPair(pair=pair, weight=1.0, reference_chosen=0.0, reference_rejected=0.0)
            for pair in pairs_of(LENGTHS)
        ],
        Batching(shared_prompt=shared, pairs_a_micro_batch=None, tokens_a_micro_batch=4096),
        place,
        log_prob_head(architecture, place, mib=config.training.log_prob_mib),
        with_rejected=True,
    )
    inputs = batch.input
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            log_probs = as_computed(policy)(
                inputs.tokens, inputs.positions, None, labels=batch.targets, packed_seq_params=inputs.attention
            )
        log_probs.sum().backward()
    return counter.get_total_flops(), sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
