"""Compare two models tensor by tensor: `irpo convert verify`.

.venv/bin/python tools/verify_conversion.py --help
"""

import sys

from irpo_megatron.cli import main

if __name__ == "__main__":
    main(["convert", "verify", *sys.argv[1:]])
