"""Licences of base models, and what each asks of whoever publishes a model made from one.

Each entry follows the licence's own text; only the notices that it makes mandatory are quoted. Sections 1.b.i and
1.b.iii of Llama's: a copy of the agreement, the notice in a text file, from Llama 3 on a phrase to display and how the
model's name begins. Section 4 of Apache-2.0: a copy, the NOTICE file, a word on what was changed. The MIT licence: its
text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The rules of one licence."""

    key: str
    """As the Hub writes it in a model card's front matter."""
    title: str
    """What it is called, and what stands in its text; compared without regard to case and white space."""
    notice: str | None = None
    """What a text file called Notice must say."""
    display: str | None = None
    """What the card must show."""
    name_begins: str | None = None
    """How the name of a model made from this one must begin."""
    policy: str | None = None
    """Where the acceptable use policy stands that it makes part of itself."""
    changes: bool = False
    """Whether the card must say that the files were changed."""


def _llama(version: str, policy: str) -> Licence:
    """From 3.1 on they differ in their number."""
    return Licence(
        key=f"llama{version}",
        title=f"Llama {version} Community License Agreement",
        notice=f"Llama {version} is licensed under the Llama {version} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
        display="Built with Llama",
        name_begins="Llama",
        policy=policy,
    )


_ALL = (
    Licence(
        key="llama2",
        title="Llama 2 Community License Agreement",
        notice="Llama 2 is licensed under the LLAMA 2 Community License, "
        "Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
        policy="https://ai.meta.com/llama/use-policy",
    ),
    Licence(
        key="llama3",
        title="Meta Llama 3 Community License Agreement",
        notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
        display="Built with Meta Llama 3",
        name_begins="Llama 3",
        policy="https://llama.meta.com/llama3/use-policy",
    ),
    _llama("3.1", "https://llama.meta.com/llama3_1/use-policy"),
    _llama("3.2", "https://www.llama.com/llama3_2/use-policy"),
    _llama("3.3", "https://www.llama.com/llama3_3/use-policy"),
    Licence(key="apache-2.0", title="Apache License Version 2.0", changes=True),
    Licence(key="mit", title="MIT License"),
)

LICENCES = {licence.key: licence for licence in _ALL}
"""By the key that a model card names them with."""
