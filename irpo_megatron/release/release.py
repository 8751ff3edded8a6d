"""Make a release of a run: every rule first, then the folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from irpo_megatron.artifacts import read_json
from irpo_megatron.errors import UserError
from irpo_megatron.release.base_model import BaseModel, base_model
from irpo_megatron.release.card import Released, card_file
from irpo_megatron.release.carried import licence_texts, with_notice
from irpo_megatron.release.checkpoint import checkpoint_files
from irpo_megatron.release.choice import CHECKPOINT, choose
from irpo_megatron.release.licences import Licence
from irpo_megatron.release.publish import File, publish
from irpo_megatron.release.terms import terms_of
from irpo_megatron.report.run_files import load_run


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was made."""

    folder: Path
    iteration: int
    evaluated: bool
    files: tuple[File, ...]
    base: BaseModel
    licence: Licence | None


def release(
    run_dir: Path, out: Path, *, iteration: int | None = None, told: Callable[[File], None] = lambda file: None
) -> Outcome:
    """Make `out` the folder of M_t, ready to be published.

    Args:
        iteration: t; None is the last one that is converted and evaluated.
        told: Called for each file once it is copied.

    Raises:
        UserError: the run or the iteration is not there, a file is damaged, the base model's licence asks for what is
            not given, or `out` is something else.
    """
    out = out.resolve()
    run = load_run(run_dir)
    chosen = choose(run, iteration)
    checkpoint = chosen.directory / CHECKPOINT
    files = checkpoint_files(checkpoint)
    model = read_json(checkpoint / "config.json")
    base = base_model(run)
    texts = licence_texts(base.folder)
    terms = terms_of(base, texts, model_type=model.get("model_type"))
    _require_name(out.name, terms.licence, base)
    legal = with_notice(texts, terms.licence)
    card = card_file(
        Released(
            name=out.name,
            run=run,
            iteration=chosen,
            base=base,
            terms=terms,
            model=model,
            legal_files=tuple(file.name for file in legal),
        )
    )
    everything = (*files, *legal, card)
    publish(out, everything, told=told)
    return Outcome(
        folder=out,
        iteration=chosen.number,
        evaluated=chosen.evaluation is not None,
        files=everything,
        base=base,
        licence=terms.licence,
    )


def _require_name(name: str, licence: Licence | None, base: BaseModel) -> None:
    """Some licences say how the name of a model made from another begins; on the Hub a hyphen stands for a space."""
    begins = None if licence is None else licence.name_begins
    if begins is None or re.match(begins.replace(" ", "[-_ ]?"), name):
        return
    assert licence is not None
    raise UserError(
        f"the model would be called {name}",
        f'by the {licence.title} (section 1.b.i), the name of a model made from {base.name} begins with "{begins}"',
        f"call the folder {begins.replace(' ', '-')}-{name}, for example",
    )
