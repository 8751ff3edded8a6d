"""One file of constraints for pip from several: a package's version is the one in the first file that names it.

    python3 docker/constraints.py HELD ... constraints.txt > MERGED

NVIDIA's images hold builds of torch that are in no registry. constraints.txt alone would replace them by the versions
that the tests ran with on a CPU, and pip refuses two files that name different versions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def merged(files: Sequence[str]) -> Iterator[str]:
    """The lines that count of these files' texts, in their order."""
    named: set[str] = set()
    for text in files:
        lines = [(_normalized(name[0]), line) for line in text.splitlines() if (name := _NAME.match(line))]
        yield from (line for name, line in lines if name not in named)
        named.update(name for name, _ in lines)  # afterwards: a file may name a package once for each Python


def _normalized(name: str) -> str:
    """As PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print(*merged([Path(file).read_text(encoding="utf-8") for file in sys.argv[1:]]), sep="\n")
