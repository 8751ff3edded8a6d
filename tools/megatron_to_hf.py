"""Megatron checkpoint -> Hugging Face folder: `irpo convert megatron-to-hf`.

.venv/bin/python tools/megatron_to_hf.py --help
"""

import sys

from irpo_megatron.cli import main

if __name__ == "__main__":
    main(["convert", "megatron-to-hf", *sys.argv[1:]])
