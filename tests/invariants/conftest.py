"""What all invariants are tested on."""

from __future__ import annotations

import pytest
from support.worlds import World, make_worlds


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return make_worlds(tmp_path_factory.mktemp("worlds"))
