"""What metrics.jsonl and the trackers are told of a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.pairs import hurtful_pairs
from support.stages import train_request

from irpo_megatron.artifacts import Progress, read_progress
from irpo_megatron.config import TrackingConfig
from irpo_megatron.requests import TrainRequest
from irpo_megatron.training import metrics
from irpo_megatron.training.batches import WeightedPair
from irpo_megatron.training.metrics import METRICS, MetricsLog
from irpo_megatron.training.step import PAIR_METRICS, StepResult

MEANS = {name: 0.5 + index for index, name in enumerate(PAIR_METRICS)}
RESULT = StepResult(means=MEANS, gradient_norm=2.0, learning_rate=1e-6)
BATCH = [
    WeightedPair(pair=pair, weight=1.0, reference_chosen=0.0, reference_rejected=0.0)
    for pair in hurtful_pairs(3, vocabulary=9)
]
OF_PAIRS = ("dpo", "rejected_log_prob", "margin", "accuracy")


class _Tracker:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.is_closed = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def close(self) -> None:
        self.is_closed = True


def _request(output: Path, *, has_reference: bool = True) -> TrainRequest:
    output.mkdir(exist_ok=True)
    return train_request(
        output,
        pairs=output,
        checkpoint=output,
        reference=output if has_reference else None,
        tracking=TrackingConfig(to=("tensorboard",)),
    )


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> _Tracker:
    tracker = _Tracker()
    monkeypatch.setattr(metrics, "open_tracker", lambda name, request, done: tracker)
    return tracker


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / METRICS).read_text().splitlines()]


def test_a_step_is_a_line_and_a_call_of_every_tracker(tmp_path: Path, tracker: _Tracker) -> None:
    with MetricsLog(_request(tmp_path / "training"), done=0, total=2) as log:
        log.write(1, RESULT, BATCH, seconds=2.0)
        assert len(_lines(tmp_path / "training")) == 1, "at once, for those who watch"
        assert not tracker.is_closed
    assert tracker.is_closed
    # Tokens of the pairs as the reader of the data counts them: each completion with its prompt.
    tokens = sum(
        2 * len(item.pair.prompt_ids) + len(item.pair.chosen_ids) + len(item.pair.rejected_ids) for item in BATCH
    )
    values = MEANS | {
        "gradient_norm": 2.0,
        "learning_rate": 1e-6,
        "pairs": 3,
        "tokens": tokens,
        "tokens_per_second": tokens / 2,
        "seconds": 2.0,
    }
    assert _lines(tmp_path / "training") == [{"iteration": 1, "step": 1} | values]
    assert tracker.logged == [(values, 1)]


def test_methods_without_a_dpo_term_have_null_where_it_would_be(tmp_path: Path, tracker: _Tracker) -> None:
    with MetricsLog(_request(tmp_path / "training", has_reference=False), done=0, total=2) as log:
        log.write(1, RESULT, BATCH, seconds=1.0)
    (line,) = _lines(tmp_path / "training")
    assert [name for name, value in line.items() if value is None] == list(OF_PAIRS)
    assert line["tokens"] == sum(len(item.pair.prompt_ids) + len(item.pair.chosen_ids) for item in BATCH)
    assert not set(OF_PAIRS) & set(tracker.logged[0][0])


def test_a_batch_that_was_left_out_has_null_for_all_that_would_come_of_it(tmp_path: Path, tracker: _Tracker) -> None:
    with MetricsLog(_request(tmp_path / "training"), done=0, total=2) as log:
        log.write(1, None, BATCH, seconds=1.0)
    (line,) = _lines(tmp_path / "training")
    assert {name for name, value in line.items() if value is None} == {*PAIR_METRICS, "gradient_norm", "learning_rate"}
    assert line["pairs"] == 3
    assert tracker.logged[0][0].keys() == {"pairs", "tokens", "tokens_per_second", "seconds"}


def test_lines_of_steps_that_are_computed_again_are_cut_off(tmp_path: Path, tracker: _Tracker) -> None:
    request = _request(tmp_path / "training")
    with MetricsLog(request, done=0, total=4) as log:
        for step in (1, 2, 3):
            log.write(step, RESULT, BATCH, seconds=float(step))
    before = _lines(request.output)
    with MetricsLog(request, done=2, total=4) as log:
        assert read_progress(request.output) == Progress(done=2, total=4, unit="steps")
        assert _lines(request.output) == before[:2]
        log.write(3, RESULT, BATCH, seconds=9.0)
    assert _lines(request.output) == [
        *before[:2],
        before[2] | {"seconds": 9.0, "tokens_per_second": pytest.approx(before[2]["tokens"] / 9)},
    ]
    with MetricsLog(request, done=0, total=4):
        assert _lines(request.output) == [], "from the start, whatever an earlier attempt has left"


def test_a_line_cut_short_by_a_kill_is_not_kept(tmp_path: Path, tracker: _Tracker) -> None:
    request = _request(tmp_path / "training")
    with MetricsLog(request, done=0, total=4) as log:
        log.write(1, RESULT, BATCH, seconds=1.0)
    with (request.output / METRICS).open("a") as file:
        file.write('{"iteration": 1, "st')
    with MetricsLog(request, done=1, total=4) as log:
        log.write(2, RESULT, BATCH, seconds=1.0)
    assert [line["step"] for line in _lines(request.output)] == [1, 2]
