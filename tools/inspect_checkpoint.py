"""What a model on disk is made of: `irpo convert inspect`.

.venv/bin/python tools/inspect_checkpoint.py --help
"""

import sys

from irpo_megatron.cli import main

if __name__ == "__main__":
    main(["convert", "inspect", *sys.argv[1:]])
