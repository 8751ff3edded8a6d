"""Convert a Megatron checkpoint, written at any layout, to a Hugging Face folder, in one process.

.venv/bin/python tools/megatron_to_hf.py runs/NAME/iteration-01/training/checkpoints/step-000025 BASE_FOLDER OUTPUT
"""

import argparse
from pathlib import Path

from irpo_megatron.config import LaunchConfig
from irpo_megatron.conversion.export_stage import run
from irpo_megatron.requests import ExportRequest

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder with config.json and state/")
    parser.add_argument("base", type=Path, help="Hugging Face folder that tokenizer and generation config come from")
    parser.add_argument("output", type=Path, help="where the folder is written; new or empty")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    run(
        ExportRequest(
            output=arguments.output,
            iteration=0,
            launch=LaunchConfig(),
            checkpoints={".": arguments.checkpoint},
            model_folder=arguments.base,
        )
    )
