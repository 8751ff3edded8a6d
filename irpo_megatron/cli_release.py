"""The `irpo release` command: a model that is ready to be published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from irpo_megatron.release.publish import File
from irpo_megatron.release.release import Outcome, release

HELP = """\
Make a folder that can be published: M_t as transformers loads it, a model card, the base model's licence.

The files of the model are copied byte for byte and checked against the run's manifest. README.md is the model \
card, written from the run. Licence, use policy and notices of the base model go along, and what that licence asks of \
whoever publishes a model made from it is checked.

OUT appears when it is whole; the same command goes on where it was stopped. Nothing is uploaded.
"""
_LARGE_BYTES = 1 << 30


def release_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, for example runs/gsm8k.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; its name is the model's.")],
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=1, help="Which M_t; by default the last that is converted and evaluated."),
    ] = None,
) -> None:
    """Make the folder and say what was made of it."""
    outcome = release(run_dir, out, iteration=iteration, told=_tell)
    total = sum(file.size for file in outcome.files)
    print(f"{outcome.folder}: M_{outcome.iteration} in {len(outcome.files)} files, {total / 1e6:,.1f} MB, all checked")
    print(f"licence: {_licence(outcome)}")
    if not outcome.evaluated:
        print("not evaluated: the card says so")
    print(f"next: read README.md, then upload the folder, for example: hf upload OWNER/NAME {outcome.folder}")


def _tell(file: File) -> None:
    """Copying large files takes a while."""
    if file.size >= _LARGE_BYTES:
        print(f"{file.name}: {file.size / 1e9:,.1f} GB, sha256 as in the manifest", flush=True)


def _licence(outcome: Outcome) -> str:
    if outcome.licence is not None:
        return f"{outcome.licence.title} of the base model, which goes along"
    if outcome.base.random:
        return "none inherited, the weights began at random; say in README.md which one you give it"
    return "NOT KNOWN; find out what the base model's asks before you publish, and correct README.md"
