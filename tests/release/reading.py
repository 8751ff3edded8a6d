"""A model card as those read it who render it: front matter by YAML, the rest by a Markdown parser of its own."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token


def read_card(folder: Path) -> tuple[dict[str, Any], list[Token]]:
    """Front matter and tokens."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    start, matter, body = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter), MarkdownIt("gfm-like", {"linkify": False}).parse(body)


def headings(tokens: list[Token]) -> list[str]:
    return [shown(tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "heading_open"]


def shown(inline: Token) -> str:
    """What a reader sees of a line."""
    return "".join(" " if child.type == "softbreak" else child.content for child in inline.children or [])


def section(tokens: list[Token], title: str) -> list[Token]:
    """What stands below a heading."""
    begins = [i for i, token in enumerate(tokens) if token.type == "heading_open"] + [len(tokens)]
    for begin, end in pairwise(begins):
        if shown(tokens[begin + 1]) == title:
            return tokens[begin + 3 : end]
    raise AssertionError(f"no section {title}")


def text_of(tokens: list[Token]) -> str:
    return " ".join(shown(token) for token in tokens if token.type == "inline")


def table_of(tokens: list[Token]) -> list[list[str]]:
    """Rows of the table in a section, its head first."""
    rows: list[list[str]] = []
    for i, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(shown(tokens[i + 1]))
    return rows


def links(tokens: list[Token]) -> list[str]:
    children = [child for token in tokens for child in token.children or []]
    return [str(child.attrs["href"]) for child in children if child.type == "link_open"]


def shape(tokens: list[Token]) -> list[str]:
    """The kinds of everything in the card, in order, but for plain text."""
    kinds = []
    for token in tokens:
        kinds += [token.type, *(child.type for child in token.children or [])]
    return [kind for kind in kinds if kind not in ("text", "text_special")]
