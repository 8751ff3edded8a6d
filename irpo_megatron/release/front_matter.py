"""What the Hub reads of a card: YAML between two lines of hyphens."""

from __future__ import annotations

import re
from typing import Any

import yaml

from irpo_megatron.config import Config
from irpo_megatron.release.base_model import BaseModel
from irpo_megatron.release.markdown import Markdown
from irpo_megatron.release.terms import Terms

_DATASETS = {"gsm8k": "openai/gsm8k", "math": "EleutherAI/hendrycks_math", "arc": "allenai/ai2_arc"}
"""Where the Hub has the data of a task; the demonstration task makes its own."""
_ON_THE_HUB = re.compile(r"hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::.*)?", re.ASCII)
_TAGS = {"irpo": ["irpo", "dpo"], "star": ["star"], "sft": ["sft"]}


def front_matter(config: Config, base: BaseModel, terms: Terms) -> Markdown:
    """The block, lines of hyphens included. No text of the run or of the base model gets into it unchecked."""
    fields: dict[str, Any] = {}
    if not base.random:  # who made a model from nothing chooses its licence
        fields["license"] = terms.licence.key if terms.licence else "unknown"
    if base.hub_name is not None:
        fields["base_model"] = base.hub_name
    datasets = _datasets(config)
    if datasets:
        fields["datasets"] = datasets
        fields["language"] = ["en"]
    fields["library_name"] = "transformers"
    fields["pipeline_tag"] = "text-generation"
    fields["tags"] = [*_TAGS[config.method], "reasoning", config.task, "megatron-core"]
    return Markdown(f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---")


def _datasets(config: Config) -> list[str]:
    """That of the training problems where they come from the Hub, else the task's own."""
    named = _ON_THE_HUB.fullmatch(config.data.train)
    name = named[1] if named else _DATASETS.get(config.task)
    return [name] if name else []
