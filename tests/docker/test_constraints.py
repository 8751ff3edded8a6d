"""What pip may install in an image: the version of the first file that names a package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def merged(folder: Path, *texts: str) -> list[str]:
    files = [folder / f"{number}.txt" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    command = [sys.executable, str(ROOT / "docker" / "constraints.py"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_first_file_that_names_a_package_decides(tmp_path: Path) -> None:
    built = "torch==2.10.0a0+b558c986e8.nv25.11\ntransformer_engine==2.9.0+70f53666\n"
    pinned = "numpy==2.1.0\nTransformer.Engine==2.9.0\n"
    ours = "# Ours.\nnumpy==2.4.6\nrich==15.0.0\ntorch==2.13.0\n"
    assert merged(tmp_path, built, pinned, ours) == [
        "torch==2.10.0a0+b558c986e8.nv25.11",
        "transformer_engine==2.9.0+70f53666",
        "numpy==2.1.0",
        "rich==15.0.0",
    ]


def test_one_file_may_name_a_package_once_for_each_python(tmp_path: Path) -> None:
    ours = 'numpy==2.4.6; python_version >= "3.11"\nnumpy==2.2.6; python_version < "3.11"\n'
    assert merged(tmp_path, "", ours) == ours.splitlines()


def test_alone_the_projects_file_is_kept_whole(tmp_path: Path) -> None:
    ours = (ROOT / "constraints.txt").read_text()
    assert merged(tmp_path, ours) == [line for line in ours.splitlines() if not line.startswith("#")]
