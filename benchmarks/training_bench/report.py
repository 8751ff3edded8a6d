"""The figures of a comparison, from the answers of its workers, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Segments = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every segment computes, and how fast the machine could."""

    pairs: int
    useful_tokens: int
    useful_flops: float
    peak_flops: float
    """FLOP/s that this machine reaches, or is said to reach."""
    peak_is: str
    """Where `peak_flops` comes from."""


def figures_of(segments: Segments, against: Segments, work: Work) -> dict[str, Any]:
    """Speed and memory of one side.

    Args:
        segments: Its answers, one a round.
        against: Those of the side that ratios are taken to, round by round.
    """
    rates = [work.pairs / segment["seconds"] for segment in segments]
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(segments, against, strict=True)]
    rate = statistics.median(rates)
    return {
        "pairs_per_second": rate,
        "best_pairs_per_second": max(rates),
        "pairs_per_second_by_round": rates,
        "useful_tokens_per_second": rate * work.useful_tokens / work.pairs,
        "cpu_seconds_per_pair": statistics.median(segment["cpu_seconds"] for segment in segments) / work.pairs,
        "ratio": statistics.median(ratios),
        "ratio_by_round": ratios,
        "share_of_peak": rate * work.useful_flops / work.pairs / work.peak_flops,
        **{name: value for name, value in segments[-1].items() if name.startswith("peak")},
    }


def print_table(console: Console, title: str, against: str, sides: dict[str, dict[str, Any]], work: Work) -> None:
    """One row a side."""
    on_cuda = any("peak_cuda_mib" in figures for figures in sides.values())
    table = Table(title=f"{title}; ratios to {against}", title_justify="left")
    table.add_column("side", no_wrap=True)
    # The best round and the CPU time say something even where other programs took turns with these.
    memory = ["peak GPU GiB"] if on_cuda else ["CPU s/pair", "peak GiB", "without imports"]
    for column in ("pairs/s", "best", "useful tokens/s", "ratio", "over rounds", *memory, f"of {work.peak_is}"):
        table.add_column(column, justify="right")
    for name, figures in sides.items():
        ratios = figures["ratio_by_round"]
        peaks = ["peak_cuda_mib"] if on_cuda else ["peak_mib", "peak_without_imports_mib"]
        cpu = [] if on_cuda else [f"{figures['cpu_seconds_per_pair']:.2f}"]
        table.add_row(
            name,
            f"{figures['pairs_per_second']:.2f}",
            f"{figures['best_pairs_per_second']:.2f}",
            f"{figures['useful_tokens_per_second']:,.0f}",
            f"{figures['ratio']:.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            *cpu,
            *(f"{figures[peak] / 1024:.2f}" for peak in peaks),
            f"{100 * figures['share_of_peak']:.0f} %",
        )
    console.print(table)


def require_agreement(ours: dict[str, float], theirs: dict[str, float], *, trl_micro: int, on_cuda: bool) -> list[str]:
    """Check that both sides computed the same first step, and say what was compared.

    Policy and reference are one model, so both margins are 0 and both DPO terms ln 2. TRL's NLL is a mean over the
    tokens of a micro-batch, ours over the tokens of each pair: they are one number only where TRL's micro-batch is one
    pair, so the whole loss is compared there alone, and the log-probs everywhere.
    """
    absolute, relative = (5e-2, 1e-3) if on_cuda else (1e-3, 1e-5)  # bf16, fp32
    compared = {"margin": absolute}
    compared |= {name: relative * abs(ours[name]) for name in ("chosen_log_prob", "rejected_log_prob")}
    if trl_micro == 1:
        compared["loss"] = absolute
    lines = []
    for name, allowed in compared.items():
        difference = abs(ours[name] - theirs[name])
        lines.append(f"{name}: {ours[name]:.5f} here, {theirs[name]:.5f} in TRL (allowed: {allowed:.1g})")
        if not difference <= allowed:
            raise SystemExit(f"the two sides do not compute the same first step: {lines[-1]}")
    return lines
