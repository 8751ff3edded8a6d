"""What is found on a machine with CUDA can in fact be imported."""

from __future__ import annotations

import importlib

import pytest

from irpo_megatron.config import PrecisionConfig

pytestmark = pytest.mark.gpu


def test_transformer_engine_imports_where_it_will_be_used() -> None:
    from irpo_megatron.engine.precision import uses_transformer_engine

    if not uses_transformer_engine(PrecisionConfig(dtype="bf16")):
        pytest.skip("Transformer Engine is not installed")
    importlib.import_module("transformer_engine.pytorch")


def test_the_kernel_of_apex_imports_where_it_was_found() -> None:
    from irpo_megatron.nvidia_packages import apex_provides_fused_weight_gradients

    if not apex_provides_fused_weight_gradients():
        pytest.skip("NVIDIA apex is not installed, or without its kernels")
    importlib.import_module("fused_weight_gradient_mlp_cuda")
