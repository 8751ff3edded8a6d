"""The model card: what the run did and found, in the words of README.md.j2."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.artifacts import Json, read_json
from irpo_megatron.errors import UserError
from irpo_megatron.release import card_tables
from irpo_megatron.release.base_model import BaseModel
from irpo_megatron.release.front_matter import front_matter
from irpo_megatron.release.markdown import Markdown, block, code, plain
from irpo_megatron.release.prompt import prompt_format
from irpo_megatron.release.publish import File
from irpo_megatron.release.terms import Terms
from irpo_megatron.report.run_files import Iteration, Run
from irpo_megatron.report.sections.headline import DEMO_NOTE, method_name, task_name
from irpo_megatron.report.wording import count, interval, percent

CARD = "README.md"
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Released:
    """What a card is about."""

    name: str
    """Of the folder, and so of the model."""
    run: Run
    iteration: Iteration
    base: BaseModel
    terms: Terms
    model: Json
    """config.json of the model."""
    legal_files: tuple[str, ...]
    """Names of the licence files that go along."""


def card_file(released: Released) -> File:
    """The card of a release: a function of the run and of the folder's name, without a date.

    Raises:
        UserError: Jinja2 is missing.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed",
            "the model card is written by Jinja2",
            "pip install 'irpo-megatron[report]'",
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=False,  # of HTML; `finalize` escapes for Markdown all that is not marked as Markdown
        finalize=plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(f"{CARD}.j2").render(_values(released))
    return File.holding(CARD, text.encode("utf-8"))


def _values(released: Released) -> Json:
    run, iteration = released.run, released.iteration
    config, evaluation = run.config, iteration.evaluation
    return {
        "front_matter": front_matter(config, released.base, released.terms),
        "name": released.name,
        "config": config,
        "iteration": iteration,
        "iterations": max(config.iterations, iteration.number),
        "task": task_name(config),
        "method": method_name(config),
        "base": released.base,
        "base_name": None if released.base.name is None else code(released.base.name),
        "measured": None if evaluation is None else f"{percent(evaluation['accuracy'])} %",
        "interval": None if evaluation is None else f"{interval(evaluation['interval'])} %",
        "test_problems": None if evaluation is None else count(evaluation["problems"]),
        "accuracy": card_tables.accuracy(run, iteration),
        "pairs": card_tables.pairs(run, iteration),
        "settings": card_tables.settings(config),
        "numerics": card_tables.numerics(config, released.model),
        "versions": card_tables.versions(run.environment),
        "train_source": code(_source(config.data.train)),
        "test_source": code(_source(config.data.test)),
        "counts": _problem_counts(run),
        "prompt": block(prompt_format(config.task), "text"),
        "example": block(_example(released.name, config.generation.max_tokens, prompt_format(config.task)), "python"),
        "demo_note": DEMO_NOTE if config.task == "arithmetic" else None,
        "licence": released.terms.licence,
        "said": None if released.terms.said is None else code(released.terms.said),
        "legal_files": Markdown(", ".join(code(name) for name in released.legal_files)),
    }


def _source(source: str) -> str:
    """Where problems come from, without the folders of this machine."""
    return source if source.startswith(("hub:", "generate:")) else Path(source).name


def _problem_counts(run: Run) -> Json | None:
    path = run.directory / "problems" / "counts.json"
    return read_json(path) if "problems" in run.seconds and path.is_file() else None


def _example(name: str, max_tokens: int, prompt: str) -> str:
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"folder = {json.dumps(name)}",
            "tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)",
            f"prompt = {json.dumps(prompt)}",
            'inputs = tokenizer(prompt, return_tensors="pt")',
            "output = model.generate(",
            '    inputs["input_ids"],',
            '    attention_mask=inputs["attention_mask"],',
            "    do_sample=False,",
            f"    max_new_tokens={max_tokens},",
            ")",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )
