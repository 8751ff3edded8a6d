"""The engine that the configuration names."""

from __future__ import annotations

from pathlib import Path

from irpo_megatron.config import GenerationConfig
from irpo_megatron.generation.protocol import Generator
from irpo_megatron.generation.transformers import TransformersGenerator


def load_generator(settings: GenerationConfig, model_folder: Path) -> Generator:
    """Load the model of a Hugging Face folder into the engine `settings.backend`.

    Raises:
        UserError: the folder holds no usable model or tokenizer.
    """
    engines = {"transformers": TransformersGenerator}
    return engines[settings.backend](model_folder, batch_size=settings.batch_size)
