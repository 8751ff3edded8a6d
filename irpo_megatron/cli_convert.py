"""The `irpo convert` commands: checkpoints in and out, outside a run."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.table import Column, Table

from irpo_megatron.config import ExportDtype
from irpo_megatron.conversion import standalone
from irpo_megatron.conversion.progress import Advance, Progress
from irpo_megatron.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Convert, compare and inspect checkpoints: Hugging Face <-> Megatron.")

Threads = Annotated[int, typer.Option(min=1, help="Tensors or files read and written at a time.")]


@app.command("hf-to-megatron")
def hf_to_megatron(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder.")],
    checkpoint: Annotated[Path, typer.Argument(help="Where the checkpoint is written: any layout can load it.")],
    tensor_parallel: Annotated[int, typer.Option(min=1, help="The layout that it will be read at mostly.")] = 1,
    threads: Threads = 2,
) -> None:
    """Write a Hugging Face folder as a Megatron checkpoint."""
    _require_training_installation()
    with _bar() as progress:
        standalone.hf_to_megatron(
            folder, checkpoint, tensor_parallel=tensor_parallel, threads=threads, progress=progress
        )
    print(f"{checkpoint}: written")


@app.command("megatron-to-hf")
def megatron_to_hf(
    checkpoint: Annotated[Path, typer.Argument(help="A Megatron checkpoint, written at any layout.")],
    base: Annotated[
        Path, typer.Argument(help="The folder that tokenizer and generation config are carried over from.")
    ],
    folder: Annotated[Path, typer.Argument(help="Where the Hugging Face folder is written.")],
    dtype: Annotated[ExportDtype | None, typer.Option(help="Type of the weights; by default as they are.")] = None,
    threads: Threads = 2,
) -> None:
    """Write a Megatron checkpoint as a Hugging Face folder."""
    _require_training_installation()
    with _bar() as progress:
        standalone.megatron_to_hf(checkpoint, base, folder, dtype=dtype, threads=threads, progress=progress)
    print(f"{folder}: written")


@app.command("verify")
def verify(
    first: Annotated[Path, typer.Argument(help="A Hugging Face folder or a Megatron checkpoint.")],
    second: Annotated[Path, typer.Argument(help="Another, of either format.")],
    logits: Annotated[bool, typer.Option("--logits", help="Also compute logits of a checkpoint and a folder.")] = False,
    hashes: Annotated[bool, typer.Option("--hashes", help="Print the sha256 of every tensor of the first.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads that logits are computed with.")] = 2,
) -> None:
    """Compare two models bit by bit, or as far as the narrower type goes; names the first tensor that differs."""
    _require_training_installation()
    from irpo_megatron.conversion.compare import compare
    from irpo_megatron.conversion.verify import TOLERANCE, compare_logits, one_of_each

    pair = one_of_each(first, second) if logits else None
    count, rounded_to = 0, None
    for comparison in compare(first, second):
        if hashes:
            print(f"{comparison.sha256}  {comparison.name}")
        if comparison.difference is not None:
            print(f"{comparison.name} differs: {comparison.difference}")
            raise typer.Exit(1)
        count, rounded_to = count + 1, comparison.rounded_to
    print(f"{count} tensors are equal, " + (f"rounded to {rounded_to}" if rounded_to else "bit for bit"))
    if pair is not None:
        difference, layers = compare_logits(*pair, threads=threads)
        print(f"logits differ by at most {difference:.2e} (first {layers} layers, fp32; allowed {TOLERANCE:.0e})")
        if not difference <= TOLERANCE:
            raise typer.Exit(1)


@app.command("inspect")
def inspect(
    path: Annotated[Path, typer.Argument(help="A Hugging Face folder or a Megatron checkpoint.")],
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Also read every file, and compare it with the manifest.")
    ] = False,
) -> None:
    """Say what a model on disk is made of, from its headers alone."""
    _require_training_installation()
    from irpo_megatron.conversion.inspect import describe

    description = describe(path)
    name = Column("tensor", overflow="fold")
    table = Table(name, "", "shape", "type", "cut", "MB", box=None, pad_edge=False)
    for kind in description.kinds:
        count = f"x {kind.count}" if kind.count > 1 else ""
        shape = " x ".join(map(str, kind.shape))
        table.add_row(kind.name, count, shape, kind.dtype, kind.cut, f"{kind.bytes / 1e6:,.2f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{description.format}: {description.parameters:,} numbers, "
        f"{description.file_bytes / 1e9:,.2f} GB in {description.files} files"
    )
    if checksums:
        print(f"{standalone.check_files(path)} files are what the manifest says")


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """A bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _total: lambda _count: None
        return
    with RichProgress(console=console, transient=True) as bar:

        def progress(total: int) -> Advance:
            task = bar.add_task("tensors", total=total)
            return lambda count: bar.advance(task, count)

        yield progress


def _require_training_installation() -> None:
    missing = [name for name in ("torch", "megatron", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"not installed: {', '.join(missing)}",
            "checkpoints are converted with the trainer's packages",
            'pip install "irpo-megatron[train]"',
        )
