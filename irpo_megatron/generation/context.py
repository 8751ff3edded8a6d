"""Room for the completion: checked before anything is sampled, since a model past its context writes nonsense."""

from __future__ import annotations

from collections.abc import Iterable

from irpo_megatron.errors import UserError


def check_context(prompts: Iterable[tuple[int, ...]], max_tokens: int, context: int | None) -> None:
    """Check that every prompt leaves room for `max_tokens` in a context of `context` tokens (None: no limit).

    Raises:
        UserError: the longest prompt leaves too little room, or a prompt has no token at all.
    """
    lengths = [len(prompt_ids) for prompt_ids in prompts]
    if not lengths:
        return
    if min(lengths) == 0:
        raise UserError(
            "a prompt has no tokens",
            "a completion continues at least one token",
            "check that the model's tokenizer knows the characters of the prompt",
        )
    if context is not None and max(lengths) + max_tokens > context:
        raise UserError(
            f"the longest prompt has {max(lengths)} tokens, generation.max_tokens = {max_tokens}",
            f"both together must fit the model's context of {context} tokens",
            f"lower generation.max_tokens to at most {context - max(lengths)}"
            if max(lengths) < context
            else "use a model with a longer context, or leave out the long problems",
        )
