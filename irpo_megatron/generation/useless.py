"""The ways in which a sample can be of no use, and how each is recognised."""

from __future__ import annotations

from collections.abc import Sequence

from irpo_megatron.records import Sample
from irpo_megatron.tasks import Task
from irpo_megatron.tasks.base import MAX_COMPLETION_CHARACTERS

KINDS = ("empty", "truncated", "repeated", "unparsable")
"""Each has a limit in the configuration, `generation.max_<kind>_share`."""

# How often one n-gram fills the second half of a completion that is called a loop.
_ROUNDS = 4


def find_useless(samples: Sequence[Sample], task: Task) -> dict[str, list[Sample]]:
    """The samples of each kind; one may be of several.

    - empty: white space at most.
    - truncated: cut off at `max_tokens`.
    - repeated: cut off in a loop; or one of several samples of a prompt that are all the same, as all are where an
      engine ignores seeds. (Some prompts are so easy that their answers are equal: what matters is whether most are.)
    - unparsable: the task finds no final answer.

    Args:
        samples: Drawn at a temperature above 0; of each prompt all, or none.
    """
    said: dict[str, list[tuple[int, ...]]] = {}
    for sample in samples:
        said.setdefault(sample.prompt_id, []).append(sample.completion_ids)
    same = {prompt_id for prompt_id, ids in said.items() if len(ids) > 1 and len(set(ids)) == 1}
    truncated = [sample for sample in samples if sample.finish_reason == "length"]
    looping = {id(sample) for sample in truncated if is_loop(sample.completion_ids)}
    return {
        "empty": [sample for sample in samples if not sample.completion.strip()],
        "truncated": truncated,
        "repeated": [sample for sample in samples if sample.prompt_id in same or id(sample) in looping],
        "unparsable": [
            sample for sample in samples if task.extract_answer(sample.completion[-MAX_COMPLETION_CHARACTERS:]) is None
        ],
    }


def is_loop(ids: Sequence[int]) -> bool:
    """Whether the second half of a completion is one n-gram, four times over at least."""
    half = ids[len(ids) // 2 :]
    return len(half) >= _ROUNDS and _period(half) * _ROUNDS <= len(half)


def _period(ids: Sequence[int]) -> int:
    """The smallest p with ids[i] == ids[i - p] throughout, by the prefix function of Knuth, Morris and Pratt."""
    borders = [0] * len(ids)
    border = 0
    for index in range(1, len(ids)):
        while border and ids[index] != ids[border]:
            border = borders[border - 1]
        border += ids[index] == ids[border]
        borders[index] = border
    return len(ids) - border
