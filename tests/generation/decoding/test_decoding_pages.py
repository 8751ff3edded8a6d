"""The page allocator, against a plain set of numbers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irpo_megatron.generation.decoding.pages import PAGE, Pages, PageShape, pages_for

SHAPE = PageShape(layers=2, heads=3, head_size=4, dtype=torch.float32, device=torch.device("cpu"))


def test_a_page_holds_keys_and_values_of_all_layers() -> None:
    assert SHAPE.page_bytes == 2 * 3 * PAGE * (4 + 4) * 4
    pool = Pages(10, SHAPE)
    assert pool.tokens.numel() * 4 == 10 * SHAPE.page_bytes
    assert not pool.tokens.any()


def test_tokens_fill_whole_pages() -> None:
    assert [pages_for(tokens) for tokens in (0, 1, PAGE, PAGE + 1)] == [0, 1, 1, 2]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 7)), max_size=40))
def test_no_page_has_two_owners_and_its_content_moves_with_it(moves: list[tuple[bool, int]]) -> None:
    """Take and give back at random; every page carries its owner's mark through all gaps that are closed."""
    pool = Pages(400, SHAPE)
    owned: dict[int, list[int]] = {}
    for owner, (taking, count) in enumerate(moves, start=1):
        if taking:
            owned[owner] = pool.take(count)
            pool.tokens[:, :, owned[owner]] = float(owner)
        elif owned:
            pool.give_back(owned.pop(min(owned)))
            moved = pool.close_gaps()
            if moved is not None:
                owned = {name: moved[pages].tolist() for name, pages in owned.items()}
        pages = [page for taken in owned.values() for page in taken]
        assert len(set(pages)) == len(pages)
        assert all(page < pool.used for page in pages)
        assert pool.used <= len(pages) / 0.9 or taking
        for name, taken in owned.items():
            assert (pool.tokens[:, :, taken] == name).all()
