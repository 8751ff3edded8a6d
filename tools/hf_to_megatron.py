"""Convert a Hugging Face folder to a Megatron checkpoint, in one process.

.venv/bin/python tools/hf_to_megatron.py HF_FOLDER OUTPUT
"""

import argparse
from pathlib import Path

from irpo_megatron.config import LaunchConfig
from irpo_megatron.conversion.import_stage import run
from irpo_megatron.requests import ImportRequest

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Hugging Face folder of a Llama")
    parser.add_argument("output", type=Path, help="where step-000000/ is written")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    run(ImportRequest(output=arguments.output, iteration=0, launch=LaunchConfig(), model_folder=arguments.folder))
