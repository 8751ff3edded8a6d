"""Graders: the same judgements from any number of workers, and none that a completion can stop."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile_completions import LONG, SHORT, mixed

from irpo_megatron.scoring import grader_worker
from irpo_megatron.scoring.graders import Graders, graders_of
from irpo_megatron.tasks import TASK_NAMES, load_task, math_verify_client
from irpo_megatron.tasks.helper_process import HelperProcess
from irpo_megatron.tasks.limits import Limits
from irpo_megatron.tasks.verdict import Judgement, Verdict

RIGHT = Judgement("18", Verdict.RIGHT)
UNGRADED = Judgement(None, Verdict.UNGRADED)


def judged(graders: Graders, completions: list[str], gold: str) -> list[Judgement]:
    return list(graders.judge(completions, [gold] * len(completions)))


def test_their_number_changes_nothing() -> None:
    rng = random.Random(3)
    completions = [f"Final answer: {rng.randint(1, 20)}" for _ in range(200)] + [mixed(rng) for _ in range(200)]
    task = load_task("gsm8k")
    expected = [task.judge(completion, "7") for completion in completions]
    assert {judgement.verdict for judgement in expected} == {Verdict.RIGHT, Verdict.WRONG}
    for workers in (1, 2, 3):
        with graders_of(task, workers) as graders:
            assert judged(graders, completions, "7") == expected


@pytest.mark.parametrize("limits", [Limits(cpu_seconds=0.02), Limits(memory_mib=4)], ids=["time", "memory"])
def test_an_overrun_is_no_verdict_and_the_others_are_graded(limits: Limits) -> None:
    graders = Graders(load_task("math"), 2, limits=limits)
    easy, hard = "Final answer: 18", "Final answer: " + "{" * 190_000
    try:
        assert judged(graders, [easy, hard, easy, easy], "18") == [RIGHT, UNGRADED, RIGHT, RIGHT]
    finally:
        graders.close()


def test_without_a_number_there_is_one_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    with graders_of(load_task("gsm8k"), None) as graders:
        assert len(graders._workers) == 3


def test_the_worker_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader_worker, "limit_memory", lambda mib: None)
    reply = grader_worker.prepare(Limits(), ["gsm8k", "exact"])
    assert reply({"completion": "Final answer: 18 ", "gold": "18"}) == {"answer": "18", "verdict": "right"}
    assert reply({"completion": "18", "gold": "18"}) == {"answer": None, "verdict": "wrong"}


def test_an_endless_answer_is_recorded_cut() -> None:
    for name in TASK_NAMES:
        judgement = load_task(name).judge("Final answer: " + "H" * 5000, "H")
        assert judgement == Judgement("H" * 1000, Verdict.WRONG)


# ---- hostile completions: 2,000 made by hypothesis, 8,000 mixed, and the endless ones, for each in turn of the tasks

HYPOTHESIS_LISTS, LIST_LENGTH, MIXED = 100, 20, 8000


@pytest.fixture(scope="module", params=TASK_NAMES)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graders]:
    """Graders in an empty folder, where nothing may have been left in the end, nor a process been started."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch, graders_of(load_task(request.param), 2) as graders:
        patch.chdir(folder)
        assert len(judged(graders, ["Final answer: 18"] * 50, "18")) == 50
        yield graders
        for worker in graders._workers:
            if worker._process is not None:
                assert children(worker._process.pid) == []
    assert list(folder.iterdir()) == []


def children(pid: int) -> list[str]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return path.read_text().split() if path.exists() else []


def all_graded(graders: Graders, completions: list[str]) -> None:
    for completion, judgement in zip(completions, judged(graders, completions, "5"), strict=True):
        assert judgement.verdict is not Verdict.UNGRADED, completion[:80]


ANYTHING = st.text(st.characters(), max_size=60)
PIECES = st.lists(st.one_of(st.sampled_from(SHORT), ANYTHING), max_size=6).map("".join)


@settings(
    max_examples=HYPOTHESIS_LISTS // len(TASK_NAMES),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(PIECES.map("Final answer: {}".format) | PIECES, min_size=LIST_LENGTH, max_size=LIST_LENGTH))
def test_made_by_hypothesis(guarded: Graders, completions: list[str]) -> None:
    all_graded(guarded, completions)


def test_mixed_of_hostile_fragments(guarded: Graders) -> None:
    rng = random.Random(0)
    all_graded(guarded, [mixed(rng) for _ in range(MIXED // len(TASK_NAMES))])


def test_endless(guarded: Graders) -> None:
    all_graded(guarded, [*LONG, *(f"Final answer: {text}" for text in LONG)])


@pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")
def test_math_verify_survives_hostile_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus and 200 of its mixtures: an answer is graded or given up, and the next one is graded."""
    monkeypatch.chdir(tmp_path)
    helper = HelperProcess("irpo_megatron.tasks.math_verify_helper", limits=Limits(cpu_seconds=0.5, memory_mib=300))
    monkeypatch.setattr(math_verify_client, "_helper_of", lambda pid: helper)
    rng = random.Random(1)
    answers = [*SHORT, *(text[:400] for text in LONG)]
    tame = [text for text in SHORT if "9" not in text]  # each tower of powers costs half a second and a new process
    answers += ["".join(rng.choices(tame, k=rng.randint(2, 4))) for _ in range(200)]
    verdicts = [math_verify_client.verified_equal(answer, "17") for answer in answers]
    assert Verdict.RIGHT not in verdicts
    assert 1 <= verdicts.count(Verdict.UNGRADED) < 40
    assert math_verify_client.verified_equal("1+x", "x+1") is Verdict.RIGHT
    helper.close()
    assert list(tmp_path.iterdir()) == []
