"""The CPU platform: what Megatron-Core 0.16 asks of CUDA, answered for a machine without it.

Megatron-Core names `cuda` devices, random states and tensor types in places that have nothing to do with GPUs.
`answer_for_cuda` redirects exactly those questions to the CPU, once, before a model is built; Megatron-Core's own files
stay as they are. It refuses to run where CUDA is present, and only `parallel_world` decides whether it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core import utils
from megatron.core.distributed import param_and_grad_buffer
from megatron.core.optimizer import clip_grads, optimizer
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

_CPU = torch.device("cpu")
# Where Megatron-Core builds small tensors with device="cuda", and how.
_MODULES = (clip_grads, optimizer, schedules, utils)
_FACTORIES = ("tensor", "zeros")


def answer_for_cuda() -> None:
    """Redirect Megatron-Core's CUDA questions to the CPU; calling it again changes nothing."""
    assert not torch.cuda.is_available(), "the CPU platform must never be active where CUDA is present"
    if isinstance(schedules.torch, _TorchOnCpu):
        return
    _answer_device_questions()
    _answer_random_state_questions()
    _answer_type_questions()
    _leave_out_collectives_of_one()


class _TorchOnCpu(types.ModuleType):
    """`torch` as four modules of Megatron-Core see it: factories asked for "cuda" answer with the CPU.

    The factories of torch itself stay as they are: transformers builds its rotary tables through them in ways that a
    wrapper breaks silently.
    """

    def __init__(self) -> None:
        super().__init__("torch")
        self.__dict__.update(torch.__dict__)
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:  # what torch itself loads only when asked for
        return getattr(torch, name)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return build


def _answer_device_questions() -> None:
    for module in _MODULES:
        module.torch = _TorchOnCpu()
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda device=None: None
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def _answer_random_state_questions() -> None:
    """Nothing here draws random numbers in training (dropout is 0, weights are loaded): forks become no-ops."""

    @contextlib.contextmanager
    def fork(self: CudaRNGStatesTracker, name: str = "") -> Iterator[None]:
        yield

    CudaRNGStatesTracker.fork = fork
    # Recomputed activations want the states of then back.
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.empty(0)
    random._set_cuda_rng_state = lambda *args, **kwargs: None


def _answer_type_questions() -> None:
    """The optimizers sort parameters by the name `torch.cuda.FloatTensor`."""
    cpu_type = torch.Tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = cpu_type(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    torch.Tensor.type = type_name  # type: ignore[method-assign, assignment]


def _leave_out_collectives_of_one() -> None:
    """A data-parallel group of one: Gloo would copy all gradients and all weights onto themselves, twice."""
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        setattr(param_and_grad_buffer, name, _unless_alone(getattr(param_and_grad_buffer, name)))


def _unless_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(collective)
    def communicate(output: torch.Tensor, source: torch.Tensor, *, group: Any, **options: Any) -> Any:
        # The buffers' collectives work in place: where a rank's part is everything, it is where it should be.
        if group.size() == 1 and output.data_ptr() == source.data_ptr():
            return None
        return collective(output, source, group=group, **options)

    return communicate
