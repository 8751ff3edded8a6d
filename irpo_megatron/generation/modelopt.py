"""FP8 by NVIDIA's modelopt: the one file that imports it.

Written to what 0.37, which TensorRT-LLM 1.2 brings, and 0.46 have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def quantise(
    source: Path, output: Path, calibration: Sequence[Sequence[int]], *, advance: Callable[[int], None]
) -> None:
    """Write the weights of a Hugging Face folder, the matrices of its layers in FP8, and `hf_quant_config.json`.

    A matrix's scale is its largest weight over 448, the largest number of E4M3; that of its inputs comes in the same
    way from the largest that occurs in `calibration`.

    Args:
        source: Spread over all GPUs that this process sees, in bf16, or on the CPU where there is none.
        output: Gets safetensors and a config.json too.
        calibration: Token ids, a row a forward pass.
        advance: Told of rows.
    """
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=torch.bfloat16,
        device_map="auto" if torch.cuda.is_available() else None,
        local_files_only=True,
        trust_remote_code=False,
    )

    def calibrate(watched: Any) -> None:
        for row in calibration:  # one at a time: numbers of a padding token would count as well
            watched(torch.tensor([row], device=watched.device), use_cache=False)
            advance(1)

    with torch.no_grad():
        mtq.quantize(model, mtq.FP8_DEFAULT_CFG, calibrate)
        export_hf_checkpoint(model, export_dir=str(output))
