"""Room on the disk: asked for before gigabytes are written, and missed in plain words if it ran out nevertheless."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from irpo_megatron.errors import UserError


@contextlib.contextmanager
def room_for(size: int, folder: Path) -> Iterator[None]:
    """Write about so many bytes below a folder in a `with` block.

    Raises:
        UserError: there is less room, or the disk or its quota was full before the block was done.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise _full(f"{size / 1e9:,.2f} GB are to be written to {folder}, and {free / 1e9:,.2f} GB are free")
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(f"{error.filename or folder}: {error.strerror}") from error


def _full(what: str) -> UserError:
    return UserError(
        what,
        "a conversion writes as many bytes as it reads",
        "free the disk, or write elsewhere; the same command goes on from here",
    )
