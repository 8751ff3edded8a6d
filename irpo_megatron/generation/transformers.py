"""Sampling with a Hugging Face model on the CPU or on one GPU: our own decoding loop around its layers.

`generate` of that library draws from one global generator, so a sample would depend on its neighbours, and waits for
the longest sample of a batch. Here a token is a function of the model, the sample's own tokens and its own uniform
numbers (see `decoding`), and rows are filled again as they fall free.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irpo_megatron.config_generation import TransformersConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings
from irpo_megatron.lasting import lasting
from irpo_megatron.model_folder import ARCHITECTURES, CONFIG
from irpo_megatron.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch


class TransformersGenerator:
    """The `transformers` backend of the protocol `Generator`.

    In `fp32` a sample is the same in every batch and, but for about one token in 10^10, on every machine. In `bf16`
    the last bits of the logits decide often enough that a sample depends on those decoded beside it.

    Attributes:
        model: The model, in evaluation mode.
    """

    def __init__(self, model_folder: Path, *, batch_size: int, settings: TransformersConfig) -> None:
        """Load model and tokenizer; at most `batch_size` samples are decoded at once.

        Raises:
            UserError: the folder holds no usable model or tokenizer.
        """
        _import_libraries()
        import torch

        from irpo_megatron.generation.decoding.batch import Engine
        from irpo_megatron.generation.decoding.exact import ExactModel
        from irpo_megatron.generation.decoding.heap import keep_freed_memory
        from irpo_megatron.generation.decoding.layers import Layers
        from irpo_megatron.generation.decoding.threads import Threads

        keep_freed_memory()
        tokenizer = Tokenizer(model_folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.dtype]
        self.model = _load_model(model_folder, dtype, device)
        with torch.inference_mode():
            self._engine = Engine(
                model=self.model,
                exact=ExactModel(self.model) if settings.dtype == "fp32" else None,
                layers=Layers(self.model),
                tokenizer=tokenizer,
                threads=Threads(device),
                most_rows=batch_size,
                memory_bytes=settings.kv_cache_mib * 2**20,
            )

    @property
    def context(self) -> int:
        """Longest sequence in tokens, as the model's config.json says."""
        return self._engine.context

    def generate(
        self, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (position in `requests`, completion) as samples end; a request is pulled when there is room for it.

        Raises:
            UserError: a prompt leaves less room than `max_tokens`, a sample needs more memory than
                `generation.transformers.kv_cache_mib`, or the model's logits are not finite.
        """
        import torch

        from irpo_megatron.generation.decoding.batch import Batch, Waiting

        waiting = Waiting(requests)
        with torch.inference_mode():
            batch = Batch(self._engine, settings)
        while True:
            with torch.inference_mode():  # not around a yield: the mode would leak into whoever iterates
                batch.admit(waiting)
                completed = batch.step() if len(batch) else None
            if completed is None:
                return
            yield from completed

    def close(self) -> None:
        """The model goes with the process, or with whoever forgets it."""


@functools.cache
def _import_libraries() -> None:
    """Import what takes long, before there is a model: that one is not to last."""
    with lasting():
        importlib.import_module("irpo_megatron.generation.decoding.batch")
        importlib.import_module("transformers.models.auto.modeling_auto")


def _load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The model of a Hugging Face folder, complete and without code of its own, in evaluation mode.

    Raises:
        UserError: transformers cannot load it, the folder lacks some of its weights, or its attention is of another
            kind.
    """
    from safetensors import SafetensorError
    from transformers import AttentionInterface, AutoModelForCausalLM

    from irpo_megatron.generation.decoding.prompts import IMPLEMENTATION, attend

    AttentionInterface.register(IMPLEMENTATION, attend)
    try:
        # Any: the library declares the pair that it returns here as one model.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            attn_implementation=IMPLEMENTATION,
        )
        model, loading = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: {error}",
            "a model is a Hugging Face folder that transformers loads without code from that folder",
            "restore config.json and the safetensors files",
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would fill them with random numbers and go on.
        raise UserError(
            f"{folder} lacks {len(missing)} weights, for example {missing[0]}",
            "a checkpoint holds every weight of its model",
            "export or download the checkpoint again",
        )
    _check_kind(folder, model.config)
    return model.to(dtype).to(device).eval()


def _check_kind(folder: Path, config: Any) -> None:
    """
    Raises:
        UserError: the model is none of those whose layers are known here.
    """
    if config.model_type not in ARCHITECTURES.values():
        raise UserError(
            f"{folder / CONFIG} has model_type = {config.model_type!r}",
            f"the backend transformers samples from {', '.join(ARCHITECTURES.values())}",
            "use another model, or another generation.backend",
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise UserError(
            f"{folder / CONFIG} has sliding_window = {window}",
            f"every token sees all those before it, up to the model's context of {config.max_position_embeddings}",
            f"set max_position_embeddings to {window} there, or use another generation.backend",
        )
