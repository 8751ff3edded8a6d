"""torch's AdamW in the checkpoints of Megatron-Core's distributed optimizer, which are made for NVIDIA's.

NVIDIA's counts the steps of a whole group of parameters; torch's counts those of every parameter, in a tensor beside
the moments. Megatron-Core 0.16 asks for the count before there is one, hands one and the same tensor to all parameters
(so that each of them would add to it), and misses it among the moments that it has saved.
"""

from __future__ import annotations

from typing import Any

import torch

from irpo_megatron.artifacts import Json


def make_room(adam: Any) -> None:
    """Let there be a state to load into.

    Args:
        adam: What `get_megatron_optimizer` made; left as it is where the AdamW in it is not torch's.
    """
    for part in _of_torch(adam):
        if not part.optimizer.state:
            part._init_optimizer_states_with_dummy_values()


def load_state(adam: Any, saved: Json) -> None:
    """Take over what `adam.sharded_state_dict` saved, whosever AdamW is in it."""
    parts = _of_torch(adam)
    if not parts:
        adam.load_state_dict(saved)
        return
    (part,) = parts  # there is one to a kind of layer, and every layer here is dense
    part.load_state_dict({key: value for key, value in saved.items() if key != "param_state"})
    states = list(part.optimizer.state.values())
    steps = [state.pop("step").clone() for state in states]
    part.load_parameter_state_from_fully_reshardable(saved["param_state"])
    for state, step in zip(states, steps, strict=True):
        state["step"] = step


def _of_torch(adam: Any) -> list[Any]:
    return [part for part in adam.chained_optimizers if isinstance(part.optimizer, torch.optim.Adam)]
