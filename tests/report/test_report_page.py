"""report.html: what it says, what it must not contain, and that it is the same every time."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report.synthetic_run import RunBuilder

from irpo_megatron.artifacts import write_json
from irpo_megatron.report import page as page_module
from irpo_megatron.report.page import write_report
from irpo_megatron.report.sections import samples as samples_module
from irpo_megatron.report.sections.headline import DEMO_NOTE

VOID = {"meta", "input", "br"}
HOSTILE = "</script><script>alert(1)</script><!-- <b onmouseover='x'> & \u2028 \x00 {{ 7*7 }} {% raw %} ]]>"


class Page(HTMLParser):
    """Checks that every element is closed where it must be, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def cards(self) -> list[dict[str, Any]]:
        cards: list[dict[str, Any]] = json.loads(self.scripts[0])
        return cards

    def count(self, tag: str) -> int:
        return sum(tag == seen for seen, _ in self.seen)


def read(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def test_a_finished_run(finished_report: str) -> None:
    page = Page(finished_report)
    assert "50.0 % base model 95 %: 42.0\u201354.0" in page.text
    assert "80.0 % iteration 2 95 %: 72.0\u201384.0" in page.text
    assert "+30.0 points" in page.text
    assert DEMO_NOTE in page.text
    assert "Not in the run directory" not in page.text
    assert "Here it fell in iterations 1 and 2" in page.text
    # accuracy; log-probs, loss, margin, gradient norm; candidates; problems, samples, pairs; seconds
    assert page.count("svg") == 10


def test_the_file_needs_nothing_but_itself(finished_report: str) -> None:
    for _, attributes in Page(finished_report).seen:
        for name, value in attributes.items():
            if name in ("src", "href", "action", "data", "poster", "srcset") or name.endswith(":href"):
                assert (value or "").startswith("#"), (name, value)
    assert "http:" not in finished_report
    assert "https:" not in finished_report
    assert "@import" not in finished_report
    assert not re.search(r"url\((?!#)", finished_report)


def test_ids_are_unique_and_references_resolve(finished_report: str) -> None:
    page = Page(finished_report)
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {
        target for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', finished_report) for target in pair if target
    }
    assert referred <= set(ids)


def test_charts_take_their_colours_and_fonts_from_the_page(finished_report: str) -> None:
    charts = "".join(re.findall(r"<svg.*?</svg>", finished_report, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", charts)) == set()
    used = set(re.findall(r"var\((--[a-z]+)\)", charts))
    defined = set(
        re.findall(r"(--[a-z]+):", finished_report.split("@media screen and (prefers-color-scheme: dark)")[0])
    )
    dark = set(re.findall(r"(--[a-z]+):", finished_report.split("(prefers-color-scheme: dark)")[1].split("* {")[0]))
    assert used <= defined
    assert defined == dark
    assert ".chart text { font-family: inherit !important; }" in finished_report
    assert "<metadata" not in charts


def test_the_same_bytes_every_time(run_dir: Path) -> None:
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


def test_a_users_matplotlib_style_does_not_show(run_dir: Path) -> None:
    import matplotlib

    first = write_report(run_dir).read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        assert write_report(run_dir).read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 20


def test_size(finished_report: str) -> None:
    assert len(finished_report.encode()) < 400_000


def test_hostile_completions_stay_text(builder: RunBuilder) -> None:
    builder.completion = HOSTILE
    builder.base()
    builder.iteration(1)
    write_json(builder.directory / "environment.json", {"note": HOSTILE.replace("\x00", "")})
    page = read(builder.directory)
    assert len(page.scripts) == 3, "the data, the browser, printing"
    assert page.count("b") == 0
    assert page.cards[0]["completions"][0]["text"] == {"head": HOSTILE}
    assert HOSTILE.replace("\x00", "").split(" \u2028")[0] in page.text
    assert "{{ 7*7 }} {% raw %} ]]>" in page.text


def test_the_browser_writes_text_nodes_only() -> None:
    script = (Path(page_module.__file__).parent / "templates" / "report.js").read_text(encoding="utf-8")
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


def test_cards(finished_report: str) -> None:
    cards = Page(finished_report).cards
    assert [card["id"] for card in cards] == [f"{split}-{i:06d}" for split in ("test", "train") for i in range(20)]
    test, train = cards[0], cards[20]
    assert test["prompt"] == {"head": "Question: 0+4\nSolution:"}
    assert test["gold"] == "H"
    assert [(c["iteration"], c["verdict"]) for c in test["completions"]] == [(0, "right"), (1, "right"), (2, "right")]
    assert [(c["iteration"], c["index"], c["verdict"]) for c in train["completions"]] == [
        (i, *sample) for i in (1, 2) for sample in ((0, "right"), (1, "wrong"), (2, "unparsable"), (3, "right"))
    ]
    assert train["completions"][0]["use"] == {"chosen": 2}
    assert train["completions"][1]["use"] == {"rejected": 1}
    assert "use" not in train["completions"][3]
    assert train["completions"][1]["answer"] == "L"
    assert "answer" not in train["completions"][2]
    assert cards[6]["completions"][0]["truncated"] is True


def test_long_texts_lose_their_middle(builder: RunBuilder) -> None:
    builder.completion = "a" * 3000 + "b" * 500 + "c" * 1000
    builder.base()
    text = read(builder.directory).cards[0]["completions"][0]["text"]
    assert text == {"head": "a" * 3000, "left_out": 500, "tail": "c" * 1000}


def test_the_page_stays_small_whatever_the_models_write(builder: RunBuilder) -> None:
    builder.completion = "<'&>" * 2000
    builder.base()
    builder.iteration(1)
    builder.iteration(2)
    path = write_report(builder.directory)
    assert path.stat().st_size < 1_500_000
    page = Page(path.read_text(encoding="utf-8"))
    shown = len([card for card in page.cards if card["kind"] == "test"])
    assert 1 <= shown < 20
    assert f"The first {shown} test problems" in page.text


def test_at_least_one_problem_is_shown(builder: RunBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "BYTES", 10)
    builder.base()
    assert len(read(builder.directory).cards) == 1


def test_generations_that_nobody_has_scored_yet(builder: RunBuilder) -> None:
    builder.preparation()
    builder.iteration(1, up_to="generations")
    cards = read(builder.directory).cards
    assert {completion["verdict"] for card in cards for completion in card["completions"]} == {"unscored"}


@pytest.mark.parametrize(
    ("task", "figures"),
    [
        ("gsm8k", ["55.6", "70.7", "73.1", "78.0", "81.1", "81.6", "88.2", "88.7", "63.5", "65.2", "66.9", "61.8"]),
        ("arc", ["77.8", "82.9", "84.8", "86.2", "86.7", "87.9", "79.8", "82.8", "83.5"]),
        ("math", ["12.5", "18.8", "17.7", "19.9", "20.8", "29.1", "16.8", "12.4", "10.5"]),
    ],
)
def test_the_papers_figures_stand_beside_ours(tmp_path: Path, task: str, figures: list[str]) -> None:
    builder = RunBuilder(tmp_path, task=task)
    builder.base()
    page = read(builder.directory)
    for figure in figures:
        assert f" {figure} " in page.text
    assert "Llama-2-70B-Chat" in page.text
    assert DEMO_NOTE not in page.text


def test_a_run_that_is_half_way(builder: RunBuilder) -> None:
    builder.base()
    builder.iteration(1, up_to="pairs")
    partial = builder.directory / "iteration-01" / "reference.partial"
    partial.mkdir()
    write_json(partial / "progress.json", {"done": 1200, "total": 4000, "unit": "rows"})
    page = read(builder.directory)
    assert (
        "Iteration 1: reference, training, selection, checkpoint-hf and evaluation; "
        "reference is under way or was interrupted (1,200 of 4,000 rows)." in page.text
    )
    assert "Iteration 2: all of it; it has not begun." in page.text
    assert "No training stage is complete yet." in page.text
    assert "No candidates have been judged" in page.text
    assert "points" not in page.text.split("Accuracy by iteration")[0]


def test_a_partial_stage_that_has_not_said_how_far_it_is(builder: RunBuilder) -> None:
    (builder.directory / "iteration-00" / "evaluation.partial").mkdir(parents=True)
    assert "Base model: evaluation; evaluation is under way or was interrupted." in read(builder.directory).text


def test_an_empty_run(builder: RunBuilder) -> None:
    page = read(builder.directory)
    assert page.count("svg") == 0
    for said in (
        "No evaluation is complete yet.",
        "No pairs have been built yet.",
        "No stage is complete yet.",
        "No completions yet.",
        "There is no environment.json",
        "nothing has finished yet",
    ):
        assert said in page.text


def test_a_run_with_nothing_but_its_problems(builder: RunBuilder) -> None:
    builder.preparation()
    page = read(builder.directory)
    assert page.count("svg") == 0
    assert "problems 1.5 s" in page.text


@pytest.mark.parametrize(("method", "charts"), [("star", 9), ("sft", 7)])
def test_methods_without_a_dpo_term(tmp_path: Path, method: str, charts: int) -> None:
    builder = RunBuilder(tmp_path, method=method, iterations=1)
    builder.base()
    builder.iteration(1)
    if method == "sft":
        counts = {"problems": 9, "pairs": 9, "odd_ones": 1}
        write_json(builder.directory / "iteration-01" / "pairs" / "counts.json", counts)
    page = read(builder.directory)
    assert "This method has no DPO term" in page.text
    assert "Not in the run directory" not in page.text
    assert page.count("svg") == charts
    assert "ln 2" not in page.text.split("How to read it")[-2]
    assert ("odd ones 1" in page.text) == (method == "sft")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"loss": {"alpha": 0.0}}, "plain DPO: IRPO without its NLL term (\u03b1 = 0, \u03b2 = 0.1)"),
        ({"loss": {"alpha": 0.2}}, "IRPO: DPO and NLL on the chosen completions (\u03b1 = 0.2, \u03b2 = 0.1)"),
        ({"model": {"path": "/models/Llama-3-8B"}}, "Base model Llama-3-8B"),
        ({"model": {"recipe": "examples/demo-base.yaml"}}, "Base model the last checkpoint of demo-base.yaml"),
        ({"model": {}}, "Base model not stated"),
    ],
)
def test_what_was_run(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    assert said in read(RunBuilder(tmp_path, **config).directory).text


def test_configuration_and_environment_are_shown(finished_report: str) -> None:
    page = Page(finished_report)
    assert "global_batch_size: 16" in page.text
    assert "packages.torch 2.5.1" in page.text


def test_tokens_by_stage(finished_report: str) -> None:
    rows = Page(finished_report).text
    # 24 problems x 6 samples x 3 tokens x 2 iterations; 5 rows x 10 tokens x 2; 20 steps x 100 tokens x 2; 3 x 1234
    for row in (
        "generations 2.5 s 3.5 s 6.0 s 864 144",
        "reference 2.5 s 3.5 s 6.0 s 100 17",
        "training 2.5 s 3.5 s 6.0 s 4,000 667",
        "evaluation 1.5 s 2.5 s 3.5 s 7.5 s 3,702 494",
    ):
        assert row in rows


def test_a_single_step_and_no_sampling(builder: RunBuilder) -> None:
    """The smallest iteration there is: one step, no direction to speak of, evaluation by greedy decoding alone."""
    builder.evaluation(0, majority=None, pass_at={})
    builder.training(1, steps=1)
    page = read(builder.directory)
    assert "Here it" not in page.text
    assert "maj@8" not in page.text
    assert "pass@" not in page.text.split("How to read it")[-2]


def test_text_is_escaped_wherever_it_stands(builder: RunBuilder) -> None:
    builder.base()
    path = builder.directory / "config.yaml"
    path.write_text(path.read_text() + "# </pre><script>alert(1)</script>\n")
    page = read(builder.directory)
    assert "</pre><script>alert(1)</script>" in page.text
    assert html.escape("</pre>") in (builder.directory / "report.html").read_text()
