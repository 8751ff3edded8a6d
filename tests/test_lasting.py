"""Modules are left alone by the search for reference cycles; what comes after them is not."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from irpo_megatron.lasting import lasting


class Knot:
    """Something that only the search for cycles can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_made_inside_is_searched_neither_meanwhile_nor_later() -> None:
    with lasting():
        assert not gc.isenabled()
        inside = weakref.ref(Knot())
    outside = weakref.ref(Knot())
    gc.collect()
    assert inside() is not None
    assert outside() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_search_goes_on_as_before(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError), lasting():
            raise ImportError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_at_the_end_of_a_process_nothing_is_left_to_search() -> None:
    code = """
import atexit, gc
atexit.register(lambda: print(len(gc.get_objects())))  # called last
from irpo_megatron.lasting import end_without_a_search
end_without_a_search()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10
