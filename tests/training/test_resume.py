"""Which steps are saved, and which point training goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.artifacts import step_of
from irpo_megatron.training.resume import (
    candidate_steps,
    checkpoint_path,
    drop_older_resume_points,
    drop_resume_points,
    latest_resume_point,
    resume_path,
    resume_points,
)


@given(st.integers(1, 5000), st.integers(1, 12))
def test_candidates_are_spread_evenly_and_the_last_is_the_end(steps: int, candidates: int) -> None:
    chosen = candidate_steps(steps, candidates)
    assert chosen[-1] == steps
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 1
    assert len(chosen) == min(steps, candidates)
    gaps = [after - before for before, after in zip([0, *chosen], chosen, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_four_candidates_of_fifty_steps() -> None:
    assert candidate_steps(50, 4) == [12, 25, 38, 50]


def _save(output: Path, *steps: int) -> None:
    for step in steps:
        (resume_path(output, step) / "state").mkdir(parents=True)


def _steps(output: Path) -> list[int]:
    return [step_of(point.name) for point in resume_points(output)]


def test_a_half_written_point_is_never_chosen(tmp_path: Path) -> None:
    assert latest_resume_point(tmp_path) is None
    _save(tmp_path, 20, 3)
    for suffix in ("partial", "replaced"):
        resume_path(tmp_path, 100).with_name(f"step-000100.{suffix}").mkdir()
    assert latest_resume_point(tmp_path) == resume_path(tmp_path, 20)
    assert _steps(tmp_path) == [3, 20]
    assert step_of(checkpoint_path(tmp_path, 7).name) == 7


def test_points_are_in_the_order_of_their_steps_however_many_digits_these_have(tmp_path: Path) -> None:
    _save(tmp_path, 1_000_000, 999_999, 2)
    assert _steps(tmp_path) == [2, 999_999, 1_000_000]
    assert latest_resume_point(tmp_path) == resume_path(tmp_path, 1_000_000)


@pytest.mark.parametrize(("keep", "left"), [(1, [9]), (2, [6, 9]), (4, [3, 6, 9]), (3, [3, 6, 9])])
def test_the_oldest_points_go(keep: int, left: list[int], tmp_path: Path) -> None:
    _save(tmp_path, 3, 6, 9)
    drop_older_resume_points(tmp_path, keep=keep)
    assert _steps(tmp_path) == left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resume"]


def test_dropping_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """A point is renamed before it is deleted, and that name may be taken by what was left over."""
    _save(tmp_path, 3, 6, 9)
    leftover = tmp_path / "resume.leftovers" / "step-000001" / "state"
    leftover.mkdir(parents=True)
    drop_older_resume_points(tmp_path, keep=1)
    assert _steps(tmp_path) == [9]
    assert not leftover.exists()


@pytest.mark.parametrize("all_of_them", [True, False])
def test_what_is_needed_no_more_goes(all_of_them: bool, tmp_path: Path) -> None:
    _save(tmp_path, 3, 6)
    (tmp_path / "resume.leftovers" / "step-000003").mkdir(parents=True)
    drop_resume_points(tmp_path, all_of_them=all_of_them)
    assert _steps(tmp_path) == ([] if all_of_them else [3, 6])
    assert [path.name for path in tmp_path.iterdir()] == ([] if all_of_them else ["resume"])
    drop_resume_points(tmp_path, all_of_them=all_of_them)  # nothing is left to do
