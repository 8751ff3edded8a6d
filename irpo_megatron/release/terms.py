"""Under what licence a base model came, by what its folder says; nothing in the folder is trusted."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from irpo_megatron.artifacts import Json
from irpo_megatron.errors import UserError
from irpo_megatron.release.base_model import BaseModel
from irpo_megatron.release.carried import LicenceText, read_text
from irpo_megatron.release.licences import LICENCES, Licence

_FRONT_MATTER = re.compile(r"---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
# How folders of Llama are called. Only Llama: names of other families have carried several licences each.
_NAMES = {
    "llama2": re.compile(r"llama[-_ ]?2(?![0-9a-z.])", re.IGNORECASE),
    "llama3": re.compile(r"llama[-_ ]?3(?![0-9a-z.])", re.IGNORECASE),
    **{f"llama3.{minor}": re.compile(rf"llama[-_ ]?3\.{minor}(?![0-9])", re.IGNORECASE) for minor in (1, 2, 3)},
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is known of a base model's licence."""

    licence: Licence | None
    """None where it is not known here: then the user has to decide."""
    said: str | None
    """What the base model's card calls its licence, as it stands there."""


def terms_of(base: BaseModel, texts: list[LicenceText], *, model_type: object) -> Terms:
    """The base model's licence: as its card says, else by its text, else as its name suggests.

    Args:
        texts: Licence files of the base model's folder.
        model_type: Of its config.json.

    Raises:
        UserError: the folder lacks the text of that licence, which must go along.
    """
    said = _said(base)
    licence = LICENCES.get((said or "").lower())
    if said is None:
        licence = next((known for known in LICENCES.values() if _holds(texts, known)), None)
        licence = licence or _suggested(base, model_type)
    if licence is not None and not _holds(texts, licence):
        why = f"its card says {said}" if said else "its name suggests so"
        raise UserError(
            f"{base.folder} has no LICENSE file with the text of the {licence.title} ({why})",
            "whoever publishes a model made from another passes on that one's licence",
            f"put the text there as LICENSE, as {base.name} was published with it"
            + ("" if said else ", or say in its README.md what the licence is, as `license:` in the front matter"),
        )
    return Terms(licence=licence, said=said)


def _said(base: BaseModel) -> str | None:
    """The key `license` of the card in its folder, or what it says instead of one of the Hub's own."""
    if base.folder is None:
        return None
    matter = _front_matter(read_text(base.folder, "README.md") or "")
    for key in ("license_name", "license") if matter.get("license") == "other" else ("license",):
        value = matter.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is not None:
            return str(value)[:100] if isinstance(value, (str, int, float)) else "several licences"
    return None


def _front_matter(card: str) -> Json:
    match = _FRONT_MATTER.match(card)
    try:
        value = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _holds(texts: list[LicenceText], licence: Licence) -> bool:
    return any(_words(licence.title) in _words(text.text) for text in texts if text.is_licence)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9.]+", text.lower()))


def _suggested(base: BaseModel, model_type: object) -> Licence | None:
    if model_type != "llama" or base.name is None:
        return None
    return next((LICENCES[key] for key, pattern in _NAMES.items() if pattern.search(base.name)), None)
