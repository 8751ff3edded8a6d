"""How a conversion says how far it is, to whoever watches: a file of the stage, or a bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Advance: TypeAlias = Callable[[int], None]
"""So many more are done; called from any thread."""

Progress: TypeAlias = Callable[[int], Advance]
"""So many there are to do, once that is known."""
