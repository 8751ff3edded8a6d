"""What a thing draws depends on its name alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.seeds import derive_seed

NAMES = st.lists(st.integers(0, 10**6) | st.text("ab:/-0123é", max_size=4), max_size=4)


def test_known_answer() -> None:
    # printf '0\x1fsample\x1f1\x1ftrain-000017\x1f3' | sha256sum  ->  00375045d87e2640...; the first 63 bits of it.
    assert derive_seed(0, "sample", 1, "train-000017", 3) == 0x00375045D87E2640 // 2
    # printf 7 | sha256sum  ->  7902699be42c8a8e...
    assert derive_seed(7) == 0x7902699BE42C8A8E // 2


@given(st.integers(0, 2**31 - 1), NAMES)
def test_a_seed_is_a_63_bit_hash_of_its_name(run_seed: int, names: list[int | str]) -> None:
    seed = derive_seed(run_seed, *names)
    assert 0 <= seed < 2**63
    digest = hashlib.sha256("\x1f".join([str(run_seed), *map(str, names)]).encode()).digest()
    assert seed == int.from_bytes(digest, "big") >> 193


@given(st.lists(st.tuples(st.integers(0, 100), NAMES), min_size=2, max_size=6))
def test_different_names_draw_different_seeds(things: list[tuple[int, list[int | str]]]) -> None:
    names = {(seed, *map(str, rest)) for seed, rest in things}
    assert len({derive_seed(*name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("one", "other"), [((0, "ab", "c"), (0, "a", "bc")), ((1, "2"), (12,)), ((0, ""), (0,)), ((0, "a", 1), (0, "a1"))]
)
def test_names_do_not_run_together(one: tuple[int, str], other: tuple[int, str]) -> None:
    assert derive_seed(*one) != derive_seed(*other)


def test_seeds_are_spread() -> None:
    seeds = [derive_seed(0, "sample", 1, "p", index) for index in range(1000)]
    assert len(set(seeds)) == 1000
    bits = [sum(seed >> bit & 1 for seed in seeds) for bit in range(63)]
    assert min(bits) > 400  # 500 expected, standard deviation 16
    assert max(bits) < 600
