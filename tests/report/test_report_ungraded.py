"""The report says how many samples the grader gave up on."""

from __future__ import annotations

from pathlib import Path

from report.synthetic_run import RunBuilder

from irpo_megatron.records import Score, read_rows, write_rows
from irpo_megatron.report.page import write_report
from irpo_megatron.report.run_files import load_run
from irpo_megatron.report.sections.accuracy import accuracy_section
from irpo_megatron.report.sections.pair_yield import pair_yield_section


def test_of_the_test_problems(run_dir: Path) -> None:
    table = accuracy_section(load_run(run_dir)).tables[0]
    assert [row[table.columns.index("Ungraded")] for row in table.rows] == ["3", "3", "3"]


def test_of_the_samples_that_pairs_are_made_of(run_dir: Path) -> None:
    (table,) = pair_yield_section(load_run(run_dir)).tables
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["… that the grader gave up on, and so counted as wrong"] == ("7", "7")


def test_on_the_card_of_the_problem(builder: RunBuilder) -> None:
    builder.base()
    path = builder.directory / "iteration-00" / "evaluation" / "greedy_scores.parquet"
    first, *others = read_rows(path, Score)
    given_up = Score(prompt_id=first.prompt_id, sample_index=0, answer=None, correct=False, graded=False)
    write_rows(path, [given_up, *others], Score)
    page = write_report(builder.directory).read_text(encoding="utf-8")
    assert page.count('"verdict": "ungraded"') + page.count('"verdict":"ungraded"') == 1
    assert '<option value="ungraded">' in page
