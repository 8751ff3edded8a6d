"""Room on the disk: asked for to the byte, and missed in plain words."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from irpo_megatron.disk import full_disk_said, require_room
from irpo_megatron.errors import UserError


def test_what_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1_500_000_000))
    require_room(1_500_000_000, tmp_path)
    with pytest.raises(UserError) as caught:
        require_room(1_500_000_001, tmp_path)
    assert caught.value.seen == f"1.50 GB are to be written to {tmp_path}, and 1.50 GB are free"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_said_with_what_was_written(number: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file: (.|\n)*the same command goes on from here"), full_disk_said(tmp_path):
        raise OSError(number, "full", "file")
    with pytest.raises(UserError) as caught, full_disk_said(tmp_path):
        raise OSError(number, "full")
    assert caught.value.seen == f"{tmp_path}: full"


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk_said(tmp_path):
        raise PermissionError(errno.EACCES, "denied")
