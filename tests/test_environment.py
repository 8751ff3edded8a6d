"""The versions of a container image are read strictly, and are none outside of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from irpo_megatron.environment import image_versions
from irpo_megatron.errors import UserError


def test_outside_of_an_image(tmp_path: Path) -> None:
    assert image_versions(tmp_path / "versions.env") is None


def test_names_and_values_without_comments(tmp_path: Path) -> None:
    file = tmp_path / "versions.env"
    file.write_text("# A comment.\n\nPYTORCH_TAG=25.11-py3@sha256:0aF\nAPEX_COMMIT=10417ace\n")
    assert image_versions(file) == {"PYTORCH_TAG": "25.11-py3@sha256:0aF", "APEX_COMMIT": "10417ace"}


@pytest.mark.parametrize(
    "text",
    [
        b"PYTORCH_TAG=$(id)\n",
        b"PYTORCH_TAG=`id`\n",
        b"PYTORCH_TAG='25.11'\n",
        b"PYTORCH_TAG=25.11 # a comment\n",
        b"export PYTORCH_TAG=25.11\n",
        b" PYTORCH_TAG=25.11\n",
        b"PYTORCH_TAG=\n",
        b"PYTORCH_TAG\n",
        b"PYTORCH_TAG=1\nPYTORCH_TAG=2\n",
        b"PYTORCH_TAG=\xff\n",
        b"#" * 20_000,
    ],
    ids=lambda text: repr(text[:30]),
)
def test_anything_else_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "versions.env"
    file.write_bytes(text)
    with pytest.raises(UserError) as caught:
        image_versions(file)
    assert str(file) in caught.value.seen
