"""Run by the Python of a base install: every module outside the heavy rooms imports, and brings no engine along.

.venv-base/bin/python tests/contracts/base_install.py
"""

import importlib
import importlib.util
import pkgutil
import sys

import irpo_megatron

HEAVY_ROOMS = ("engine", "losses", "training", "conversion", "generation.decoding")
ENGINES = (
    "torch",
    "megatron",
    "transformers",
    "tensorrt_llm",
    "modelopt",
    "matplotlib",
    "jinja2",
    "datasets",
    "math_verify",
)


def main() -> int:
    installed = [name for name in ENGINES if importlib.util.find_spec(name) is not None]
    if installed:
        print(f"this is no base install: {', '.join(installed)} can be imported")
        return 1
    modules = [
        module.name
        for module in pkgutil.walk_packages(irpo_megatron.__path__, "irpo_megatron.", onerror=lambda name: None)
        if not module.name.removeprefix("irpo_megatron.").startswith(HEAVY_ROOMS)
    ]
    for name in modules:
        importlib.import_module(name)
    print(f"base install: {len(modules)} modules import without {', '.join(ENGINES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
