"""Which steps are saved, and which point training goes on from."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.artifacts import step_of
from irpo_megatron.training.resume import candidate_steps, checkpoint_path, latest_resume_point, resume_path


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


def test_a_half_written_point_is_never_chosen(tmp_path: Path) -> None:
    assert latest_resume_point(tmp_path) is None
    for step in (3, 20):
        resume_path(tmp_path, step).mkdir(parents=True)
    resume_path(tmp_path, 100).with_name("step-000100.partial").mkdir()
    point = latest_resume_point(tmp_path)
    assert point is not None
    assert step_of(point.name) == 20
    assert step_of(checkpoint_path(tmp_path, 7).name) == 7
