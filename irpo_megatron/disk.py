"""Room on the disk: asked for before gigabytes are written, and missed in plain words if it ran out nevertheless."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from irpo_megatron.errors import UserError


def require_room(size: int, folder: Path) -> None:
    """Refuse to begin what does not fit.

    Raises:
        UserError: less than `size` bytes are free below `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise _full(f"{size / 1e9:,.2f} GB are to be written to {folder}, and {free / 1e9:,.2f} GB are free")


@contextlib.contextmanager
def full_disk_said(folder: Path) -> Iterator[None]:
    """Around whatever writes below a folder.

    Raises:
        UserError: the disk or its quota was full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(f"{error.filename or folder}: {error.strerror}") from error


def _full(what: str) -> UserError:
    return UserError(
        what,
        "what is written fits on the disk and into its quota",
        "free the disk, or write elsewhere; the same command goes on from here",
    )
