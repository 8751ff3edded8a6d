"""Hugging Face folder -> Megatron checkpoint: `irpo convert hf-to-megatron`.

.venv/bin/python tools/hf_to_megatron.py --help
"""

import sys

from irpo_megatron.cli import main

if __name__ == "__main__":
    main(["convert", "hf-to-megatron", *sys.argv[1:]])
