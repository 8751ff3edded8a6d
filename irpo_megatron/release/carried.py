"""Licence, use policy and notices of the base model: what goes along byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.errors import UserError
from irpo_megatron.release.licences import Licence
from irpo_megatron.release.publish import File

_LICENCES = ("license", "licence")
_PREFIXES = (*_LICENCES, "use_policy", "notice")
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LicenceText:
    """One such file."""

    name: str
    content: bytes

    @property
    def text(self) -> str:
        """To search in; what is no UTF-8 is left out."""
        return self.content.decode("utf-8", errors="ignore")

    @property
    def is_licence(self) -> bool:
        """Whether it is the licence itself, by its name."""
        return self.name.lower().startswith(_LICENCES)


def licence_texts(folder: Path | None) -> list[LicenceText]:
    """LICENSE*, USE_POLICY* and NOTICE* of a base model's folder, however they are capitalised.

    Raises:
        UserError: one is no text, or a link to somewhere else.
    """
    if folder is None:
        return []
    names = sorted(path.name for path in folder.iterdir() if path.name.lower().startswith(_PREFIXES) and path.is_file())
    return [LicenceText(name=name, content=_read(folder, name)) for name in names]


def with_notice(texts: list[LicenceText], licence: Licence | None) -> list[File]:
    """The files that go along, and the mandatory notice where none of them has it."""
    files = [File.holding(text.name, text.content) for text in texts]
    notices = [text.text for text in texts if text.name.lower().startswith("notice")]
    if licence is None or licence.notice is None or any(_same(licence.notice, notice) for notice in notices):
        return files
    name = "NOTICE.llama" if notices else "NOTICE"
    return [*files, File.holding(name, f"{licence.notice}\n".encode())]


def read_text(folder: Path, name: str) -> str | None:
    """A text of the base model's folder; None where there is none.

    Raises:
        UserError: it is no text, or a link to somewhere else.
    """
    return _read(folder, name).decode("utf-8", errors="ignore") if (folder / name).is_file() else None


def _same(wanted: str, notice: str) -> bool:
    return _plain(wanted) in _plain(notice)


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("©", "(c)").split())


def _read(folder: Path, name: str) -> bytes:
    path, root = folder / name, folder.resolve()
    # A link to anywhere could publish any file of this user; in the Hub's cache each file is a link to ../../blobs.
    places = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    if not any(path.resolve().is_relative_to(place) for place in places):
        raise UserError(
            f"{path} is a link to {path.resolve()}",
            "what goes along with a release lies in the base model's own folder",
            "put the file itself there",
        )
    with path.open("rb") as stream:
        content = stream.read(_LARGEST_BYTES + 1)
    if len(content) > _LARGEST_BYTES or b"\0" in content:
        raise UserError(
            f"{path} {'has more than 1 MiB' if len(content) > _LARGEST_BYTES else 'is no text'}",
            "licences, notices and model cards are texts",
            "restore the file, or rename it if it is something else",
        )
    return content
