"""The configuration as text that people read: YAML with the sentence that explains each key above it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import yaml

from irpo_megatron.config import Config
from irpo_megatron.config_section import Section


def describe(config: Config) -> str:
    """The resolved tree as YAML, with the sentence that explains each key above it."""
    return "\n".join(_described(config, indent="")) + "\n"


def _described(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        # A section is explained by its own sentence.
        yield f"{indent}# {field.description or type(value).__doc__}"
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _described(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_on_one_line(section.model_dump(mode='json', include={name})[name])}"


class _OneLineDumper(yaml.SafeDumper):
    """Quotes text so that it never breaks the line."""


_OneLineDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def _on_one_line(value: object) -> str:
    text: str = yaml.dump(
        [value], Dumper=_OneLineDumper, default_flow_style=True, allow_unicode=True, width=sys.maxsize
    )
    return text.rstrip()[1:-1]
