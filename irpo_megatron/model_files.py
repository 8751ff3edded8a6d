"""Which files make up a model: what conversion writes and carries along, and what a release may hold.

Names are relative to the model's folder, and each is one that is known: nothing that runs or is unpickled when it is
loaded, and nothing outside the folder, has such a name.
"""

from __future__ import annotations

import re
from pathlib import Path

_WRITTEN = re.compile(r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json", re.ASCII)
_CARRIED_ALONG = re.compile(
    r"(generation_config|special_tokens_map|added_tokens|vocab|tekken)\.json|merges\.txt"
    r"|tokenizer[\w-]*\.json|tokenizer\.model(\.v\w+)?"
    r"|chat_template[\w-]*\.(jinja|json)|additional_chat_templates/[\w-]+\.jinja",
    re.ASCII,
)


def carried_along(folder: Path) -> list[str]:
    """Names of a folder's files that go unchanged wherever its model goes: tokenizer, chat templates, how to sample."""
    names = (path.relative_to(folder).as_posix() for pattern in ("*", "*/*") for path in folder.glob(pattern))
    return sorted(name for name in names if _CARRIED_ALONG.fullmatch(name) and (folder / name).is_file())


def is_model_file(name: str) -> bool:
    """Whether a file of a model, as conversion writes it, may have this name."""
    return bool(_WRITTEN.fullmatch(name) or _CARRIED_ALONG.fullmatch(name))
