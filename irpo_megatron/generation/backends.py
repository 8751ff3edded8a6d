"""The engine that the configuration names."""

from __future__ import annotations

from pathlib import Path

from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.generation.openai import OpenAIGenerator
from irpo_megatron.generation.protocol import Generator
from irpo_megatron.generation.tensorrt_llm import TensorRTLLMGenerator
from irpo_megatron.generation.transformers import TransformersGenerator


def load_generator(settings: GenerationConfig, model_folder: Path) -> Generator:
    """Load the model of a Hugging Face folder into the engine `settings.backend`.

    Whoever loads it closes it: `with contextlib.closing(load_generator(...)) as generator`.

    Raises:
        UserError: the folder holds no usable model or tokenizer, or the engine does not start.
    """
    if settings.backend == "tensorrt_llm":
        return TensorRTLLMGenerator(model_folder, settings)
    if settings.backend == "openai":
        return OpenAIGenerator(model_folder, settings)
    return TransformersGenerator(model_folder, batch_size=settings.batch_size, settings=settings.transformers)
