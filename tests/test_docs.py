"""The documents say what the code says: the quoted loop, the table of keys, every command, message, path and link.

    UPDATE_DOCS=1 .venv/bin/pytest tests/test_docs.py      (rewrites the generated parts)

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from irpo_megatron import iteration
from irpo_megatron.cli import app
from irpo_megatron.config import RESULT_NEUTRAL, Config
from irpo_megatron.config_file import load_config
from irpo_megatron.config_section import Section

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "tools", ROOT / "docker")
    for path in sorted(folder.glob("*.md"))
    if folder == ROOT or folder.name == "docs" or path.name == "README.md"
]
IRPO = ("irpo", ".venv/bin/irpo")
FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
MARKED = re.compile(r"<!-- generated: (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


# Generated parts


def quoted_loop() -> str:
    return f"```python\n{inspect.getsource(iteration.run_loop).rstrip()}\n```"


def key_tables() -> str:
    return "\n\n".join([_table("The run", Config, prefix=""), *_section_tables(Config, prefix="")])


def neutral_keys() -> str:
    return "\n".join(f"- `{key}`" for key in sorted(RESULT_NEUTRAL))


GENERATED: dict[str, Callable[[], str]] = {"loop": quoted_loop, "keys": key_tables, "neutral": neutral_keys}


def _section_tables(section: type[Section], *, prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is not None:
            yield _table(f"`{prefix}{name}`", inner, prefix=f"{prefix}{name}.")
            yield from _section_tables(inner, prefix=f"{prefix}{name}.")


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a key holds, also where it may be null."""
    for member in (annotation, *typing.get_args(annotation)):
        if isinstance(member, type) and issubclass(member, Section):
            return member
    return None


def _table(title: str, section: type[Section], *, prefix: str) -> str:
    hints = typing.get_type_hints(section, include_extras=True)
    rows = [
        f"| `{prefix}{name}` | {_default(field)} | {_takes(hints[name])} | {field.description} |"
        for name, field in section.model_fields.items()
        if _section_in(field.annotation) is None
    ]
    sentence = " ".join((section.__doc__ or "").split())
    return "\n".join(
        [f"### {title}", "", sentence, "", "| key | default | takes | meaning |", "|---|---|---|---|", *rows]
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = to_jsonable_python(field.get_default())
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", type(None): "`null`"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _takes(annotation: Any) -> str:
    """What a key takes, in words."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        rules = [rule for field in members[1:] if isinstance(field, FieldInfo) for rule in field.metadata]
        bounds = [
            f"{sign} {getattr(rule, key)}" for rule in rules for key, sign in _SIGNS.items() if hasattr(rule, key)
        ]
        return f"{_takes(members[0])} {' and '.join(bounds)}".rstrip()
    if origin is typing.Literal:
        return ", ".join(f"`{member}`" for member in members)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_takes, members))
    if origin is dict:
        return "mapping"
    return f"list of: {_takes(members[0])}" if origin is tuple else _KINDS[annotation]


@each_document
def test_generated_parts_are_up_to_date(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    expected = MARKED.sub(
        lambda part: f"<!-- generated: {part['name']} -->\n{GENERATED[part['name']]()}\n<!-- end -->", text
    )
    if os.environ.get("UPDATE_DOCS"):
        document.write_text(expected, encoding="utf-8")
        text = expected
    assert text == expected, f"run UPDATE_DOCS=1 .venv/bin/pytest {Path(__file__).relative_to(ROOT)}"


def test_every_generated_part_stands_in_a_document() -> None:
    found = {part["name"] for document in DOCUMENTS for part in MARKED.finditer(document.read_text(encoding="utf-8"))}
    assert found == GENERATED.keys()
    assert "<!-- generated: loop -->" in (ROOT / "README.md").read_text(encoding="utf-8")


# Commands


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def shell_lines(document: Path) -> Iterator[str]:
    for block in FENCED.finditer(document.read_text(encoding="utf-8")):
        if block["language"] in ("bash", "sh"):
            yield from block["text"].replace("\\\n", " ").splitlines()


def irpo_commands(document: Path) -> Iterator[list[str]]:
    """The arguments of every `irpo` command, in shell blocks and in the text; a bare `irpo run` gets a CONFIG."""
    for line in shell_lines(document):
        if any(name in line.split() for name in IRPO):  # what else stands there, such as Python, is not read
            tokens = shlex.split(line, comments=True)
            start = min(tokens.index(name) for name in IRPO if name in tokens)
            ends = [index for index, token in enumerate(tokens) if index > start and re.match(r"[|;&<>]|\d>", token)]
            yield tokens[start + 1 : min(ends, default=len(tokens))]
    for span in code_spans(document.read_text(encoding="utf-8")):
        tokens = span.split()
        if tokens[0] in IRPO and len(tokens) > 1:
            names_only = len(tokens) == 2 and tokens[1] != "--help"
            yield [*tokens[1:], "CONFIG"] if names_only else shlex.split(span)[1:]


@each_document
def test_every_command_parses_and_its_configuration_resolves(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    group: Any = typer.main.get_command(app)
    for arguments in irpo_commands(document):
        if arguments == ["--help"]:
            continue
        name, *rest = arguments
        assert name in group.commands, arguments
        values = group.commands[name].make_context(name, rest).params
        config, overrides = values.get("config"), values.get("overrides") or []
        if config is not None and Path(config).is_file() and not any("PATH" in override for override in overrides):
            load_config(Path(config), overrides)
        elif config is not None and Path(config).parent.name == "examples":
            assert Path(config).is_file(), arguments


@each_document
def test_every_make_target_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "\n".join([*shell_lines(document), *code_spans(document.read_text(encoding="utf-8"))])
    assert set(re.findall(r"(?:^|\s)make ([a-z-]+)", text)) <= targets


@each_document
def test_every_configuration_in_a_document_is_valid(document: Path, tmp_path: Path) -> None:
    """Each stands beside the examples, which it may name as its base."""
    for block in FENCED.finditer(document.read_text(encoding="utf-8")):
        if block["language"] == "yaml":
            folder = shutil.copytree(ROOT / "examples", tmp_path / "examples", dirs_exist_ok=True)
            file = folder / "of_a_document.yaml"
            file.write_text(block["text"], encoding="utf-8")
            load_config(file)


# Messages, paths, links


def test_every_message_that_is_explained_exists() -> None:
    """Of the messages of this package; `…` stands for what varies."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "irpo_megatron").rglob("*.py")))
    source = re.sub(r"\"\s*\n\s*f?r?\"", "", source)  # a message may go on in the next line
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    ours, _, _ = text.partition("## Messages of other packages")
    messages = re.findall(r"^\| `([^`]+)` \|", ours, re.MULTILINE)
    assert messages
    for message in messages:
        for fragment in filter(None, (part.strip() for part in message.split("…"))):
            assert fragment in source, message


@each_document
def test_every_path_in_the_project_exists(document: Path) -> None:
    for span in code_spans(document.read_text(encoding="utf-8")):
        if re.fullmatch(r"[A-Za-z_][\w./-]*/[\w.-]+\.(?:py|yaml|toml|md)", span) and not span.startswith("runs/"):
            assert (ROOT / span).exists() or (ROOT / "irpo_megatron" / span).exists(), span


@each_document
def test_every_relative_link_resolves(document: Path) -> None:
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            linked = (document.parent / path) if path else document
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def anchors(document: Path) -> set[str]:
    """What a heading is linked by: lower case, without signs, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_no_host_is_named_but_the_papers(document: Path) -> None:
    text = document.read_text(encoding="utf-8").lower()
    hosts = re.findall(r"\b(?!dockerd?:)[a-z]+://([^/\s)>\"'`]+)", text)  # those two name images, not hosts
    hosts += re.findall(r"\b((?:[a-z0-9-]+\.)+(?:com|org|net|io|dev|ai|co|edu|gov))\b", text)
    assert {host for host in hosts if host != "arxiv.org"} == set()
    assert re.findall(r"(?:^|[\s`\"'(=])(/(?:home|root|tmp|work|opt|mnt)\b)", text) == [], "a path of some machine"
