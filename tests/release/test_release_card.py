"""The model card: its numbers are those of the run, and no text of the run becomes anything but text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it.token import Token
from release.reading import headings, links, read_card, section, shape, table_of, text_of
from release.released_run import PROBLEMS, RIGHT, VOTED, make_base, make_run, wilson
from report.synthetic_run import COUNTS

from irpo_megatron.artifacts import write_json
from irpo_megatron.errors import UserError
from irpo_megatron.release.prompt import prompt_format
from irpo_megatron.release.release import release
from irpo_megatron.tasks import TASK_NAMES

SECTIONS = [
    "Accuracy",
    "Method",
    "Data",
    "Settings",
    "Numerics and layout",
    "Versions",
    "How to load it",
    "Limitations",
    "Licence",
    "Citation",
]
PAPER = "https://arxiv.org/abs/2404.19733"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def card(root: Path, name: str = "model", iteration: int | None = None, **config: Any) -> tuple[dict[str, Any], Any]:
    release(make_run(root / "run", **config), root / name, iteration=iteration)
    return read_card(root / name)


def test_accuracies_and_intervals_are_those_of_the_counts(run_dir: Path, tmp_path: Path) -> None:
    release(run_dir, tmp_path / "model")
    head, *rows = table_of(section(read_card(tmp_path / "model")[1], "Accuracy"))
    assert head == ["Iteration", "Greedy, %", "95 %", "maj@8, %", "95 %"]
    assert [row[0] for row in rows] == ["0 (base)", "1", "2 (this model)"]
    for row, right, voted in zip(rows, RIGHT, VOTED, strict=True):
        expected = []
        for successes in (right, voted):
            low, high = wilson(successes, PROBLEMS)
            expected += [percent(successes / PROBLEMS), f"{percent(low)}–{percent(high)}"]
        assert row[1:] == expected


def test_the_first_lines_give_the_released_models_accuracy(run_dir: Path, tmp_path: Path) -> None:
    release(run_dir, tmp_path / "model", iteration=1)
    tokens = read_card(tmp_path / "model")[1]
    low, high = (percent(bound) for bound in wilson(RIGHT[1], PROBLEMS))
    opening = text_of(section(tokens, "model"))
    assert f"on {PROBLEMS} test problems: {percent(RIGHT[1] / PROBLEMS)} % (95 %: {low}–{high} %)." in opening
    assert "It is iteration 1 of 2." in opening
    assert [row[0] for row in table_of(section(tokens, "Accuracy"))[1:]] == ["0 (base)", "1 (this model)"]


def test_an_iteration_that_was_not_evaluated_is_said_to_be_so(tmp_path: Path) -> None:
    tokens = card(tmp_path, iteration=2, evaluated=1)[1]
    assert "It has not been evaluated." in text_of(section(tokens, "model"))
    assert table_of(section(tokens, "Accuracy"))[-1] == ["2 (this model)", "not evaluated", "–", "–", "–"]
    assert "Nothing about this model has been measured." in text_of(section(tokens, "Limitations"))


@pytest.mark.parametrize("engine", [{}, {"fp8_weights": {}}], ids=["as they are", "FP8 copies"])
def test_what_was_measured_in_fp8_is_said_to_be_so(tmp_path: Path, engine: dict[str, Any]) -> None:
    tokens = card(tmp_path, generation={"backend": "tensorrt_llm", "tensorrt_llm": engine})[1]
    assert ("FP8 copies of the models were measured" in text_of(section(tokens, "Accuracy"))) == bool(engine)


def test_data_settings_and_versions_are_the_runs(tmp_path: Path) -> None:
    tokens = card(
        tmp_path, loss={"alpha": 0.5, "beta": 0.2}, parallel={"tensor": 2, "data": 3}, precision={"dtype": "bf16"}
    )[1]
    assert headings(tokens) == ["model", *SECTIONS]
    counts = [f"{COUNTS[key]:,}" for key in ("problems", "samples", "pairs", "pairs_held_out")]
    assert table_of(section(tokens, "Data"))[1:] == [[str(number), *counts, "15"] for number in (1, 2)]
    assert "There are 70 to train on, 30 held out to choose checkpoints by, and 100 to test on." in text_of(
        section(tokens, "Data")
    )
    settings = dict(table_of(section(tokens, "Settings"))[1:])
    assert (settings["loss.alpha"], settings["loss.beta"], settings["seed"]) == ("0.5", "0.2", "0")
    assert "training.save_every" not in settings  # changes no result
    numerics = dict(table_of(section(tokens, "Numerics and layout"))[1:])
    assert (numerics["Training"], numerics["Weights in this folder"]) == ("bf16", "bfloat16")
    assert (numerics["Tensor parallel"], numerics["Data parallel"]) == ("2", "3")
    assert table_of(section(tokens, "Versions"))[1:] == [["python", "3.11.2"], ["torch", "2.5.1"]]


@pytest.mark.parametrize(
    ("config", "said", "not_said"),
    [
        ({}, "DPO with β = 0.1, plus α = 1.0 times the negative log-likelihood", "plain DPO"),
        ({"loss": {"alpha": 0.0}}, "this is plain DPO", "plus α"),
        ({"method": "star"}, "by their likelihood alone", "DPO"),
        ({"method": "sft"}, "Supervised training on the gold solutions", "samples"),
        ({"pairs": {"gold_as_winner": True}}, "The gold solution counted as one of the right completions", "plain DPO"),
        ({"selection": {"candidates": 1}}, "the final answer is the gold one", "the best on held-out"),
    ],
)
def test_the_method_is_the_runs(tmp_path: Path, config: dict[str, Any], said: str, not_said: str) -> None:
    tokens = card(tmp_path, **config)[1]
    text = text_of(section(tokens, "Method")).replace("if its final", "if the final")
    assert said in text
    assert not_said not in text
    assert links(section(tokens, "Method")) == ([] if config.get("method") == "sft" else [PAPER])


@pytest.mark.parametrize(
    ("task", "train", "datasets"),
    [
        ("gsm8k", "train.jsonl", ["openai/gsm8k"]),
        ("gsm8k", "hub:someone/gsm8k-clean:main:train", ["someone/gsm8k-clean"]),
        ("math", "/data/math", ["EleutherAI/hendrycks_math"]),
        ("arc", "ARC-Challenge-Train.jsonl", ["allenai/ai2_arc"]),
        ("arithmetic", "generate:train:100", None),
    ],
)
def test_front_matter(tmp_path: Path, task: str, train: str, datasets: list[str] | None) -> None:
    matter, tokens = card(tmp_path, task=task, data={"train": train, "test": train})
    assert matter.get("datasets") == datasets
    assert matter.get("language") == (None if datasets is None else ["en"])
    assert (matter["pipeline_tag"], matter["library_name"]) == ("text-generation", "transformers")
    assert matter["tags"] == ["irpo", "dpo", "reasoning", task, "megatron-core"]
    assert "license" not in matter  # from random weights: there is nothing to inherit
    assert "base_model" not in matter
    source = train if ":" in train else Path(train).name
    assert f"Training problems: {source}. Test problems: {source}." in text_of(section(tokens, "Data"))


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_prompt_is_the_tasks(tmp_path: Path, task: str) -> None:
    tokens = section(card(tmp_path, task=task)[1], "How to load it")
    example, prompt = [token for token in tokens if token.type == "fence"]
    assert prompt.content == f"{prompt_format(task)}\n"
    compile(example.content, "README.md", "exec")
    assert ("3+4-2*5" if task == "arithmetic" else "QUESTION") in prompt.content


def test_test_problems_that_were_trained_on_are_owned_up_to(run_dir: Path, tmp_path: Path) -> None:
    write_json(run_dir / "problems" / "counts.json", {"train": 70, "held_out": 30, "test": 100, "in_both": 7})
    release(run_dir, tmp_path / "model")
    assert "7 of the test problems are training problems too" in text_of(
        section(read_card(tmp_path / "model")[1], "Limitations")
    )


HOSTILE = (
    "x\n---\nlicense: mit\n---\n# Heading",
    "`` code ` </script><script>alert(1)</script>",
    "| cell | [link](http://evil.example) ![image](http://evil.example) <b>bold</b> **strong** |",
    "\u2028line\r\nbreak\x1b[31m {{ 7*7 }} {% raw %} $x$ \\",
)


def released_with(root: Path, text: str) -> tuple[dict[str, Any], list[Token]]:
    """The card of a run that has a text in its configuration, its base model, its environment and its name."""
    name = text.replace("/", ":")
    base = make_base(root / name)
    base.joinpath("README.md").write_text(f"---\n{yaml.safe_dump({'license': text})}---\n", encoding="utf-8")
    config = {
        "model": {"path": str(base)},
        "data": {"train": f"hub:{text}", "test": text},
        "generation": {"stop": [text]},
    }
    run_dir = make_run(root, **config)
    write_json(run_dir / "environment.json", {"python": text, "packages": {text: text}})
    release(run_dir, root / f"a {name}")
    return read_card(root / f"a {name}")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    matter, tokens = released_with(tmp_path / "hostile", text)
    harmless, expected = released_with(tmp_path / "harmless", "word")
    assert matter == {key: value for key, value in harmless.items() if key != "base_model"}
    assert shape(tokens) == shape(expected)
    assert links(tokens) == links(expected)
    assert headings(tokens)[1:] == SECTIONS


def test_a_card_needs_jinja(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"irpo-megatron\[report\]"):
        release(run_dir, tmp_path / "model")
    assert not (tmp_path / "model").exists()
