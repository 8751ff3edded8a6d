"""The reference pass: log p_ref of every unique (prompt, completion) row, once an iteration.

    python -m irpo_megatron.process irpo_megatron.training.reference REQUEST.json

The reference is M_{t-1} itself, so no second model is ever in memory: its log-probs are computed forward-only, before
training, and stored, with what they belong to (`identity.json`). Shards that a killed pass has written are kept.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from irpo_megatron.artifacts import ProgressWriter
from irpo_megatron.engine.inputs import ModelInput
from irpo_megatron.engine.loading import load_policy
from irpo_megatron.engine.model import as_computed
from irpo_megatron.engine.parallel import Place, parallel_world
from irpo_megatron.engine.policy import Head, Targets
from irpo_megatron.engine.schedule import forward_backward
from irpo_megatron.rank_log import note
from irpo_megatron.records import Pair, ReferenceLogProb, read_rows, write_rows
from irpo_megatron.requests import ReferenceRequest
from irpo_megatron.training.batches import Batching, batching_of
from irpo_megatron.training.identity import claim, reference_identity
from irpo_megatron.training.rows import CompletionRow, unique_rows
from irpo_megatron.training.sequences import Row, Sequences, lay_out, log_prob_head
from irpo_megatron.watchdog import Watchdog

ROWS_A_SHARD = 512


def run(request: ReferenceRequest) -> None:
    """Write `reference-*.parquet` of `ReferenceLogProb` rows."""
    rows = unique_rows(read_rows(request.pair_rows / "pairs.parquet", Pair))
    shards = [rows[start : start + ROWS_A_SHARD] for start in range(0, len(rows), ROWS_A_SHARD)]
    stall_seconds = 60 * request.launch.stall_minutes
    with (
        parallel_world(
            request.parallel,
            threads=request.launch.threads,
            precision=request.precision,
            timeout=timedelta(seconds=2 * stall_seconds),  # the watchdog comes first, and tells more
        ) as place,
        Watchdog(stall_seconds, rank=place.rank) as watchdog,
    ):
        batching = _of_rows(batching_of(request.training, place))
        model, architecture = load_policy(request.checkpoint, place)
        chunks = [as_computed(chunk).eval() for chunk in model]
        head = log_prob_head(architecture, place, mib=request.training.log_prob_mib)
        if place.is_main:
            claim(request.output, reference_identity(request.checkpoint, rows, request.precision))
        missing = _missing_shards(request.output, len(shards))
        progress = (
            ProgressWriter(request.output, total=len(shards), unit="shards", done=len(shards) - len(missing))
            if place.is_main
            else None
        )
        # A shard a data-parallel replica, all ranks of which work on it; then all replicas wait for each other, so that
        # none comes so far ahead that its wait at the end looks like a stall.
        for start in range(0, len(missing), place.data_size):
            round_ = missing[start : start + place.data_size]
            watchdog.beat(f"shards {round_}")
            started = time.monotonic()
            for index in round_[place.data_rank : place.data_rank + 1]:
                log_probs = _log_probs(chunks, row_batches(shards[index], batching, place, head), place)
                if place.holds_results:
                    write_rows(_shard_path(request.output, index), log_probs, ReferenceLogProb)
            dist.barrier()
            note("shards", shards=round_, seconds=time.monotonic() - started, peak_bytes=place.peak_bytes())
            if progress is not None:
                progress.advance(len(round_))


def _shard_path(directory: Path, index: int) -> Path:
    return directory / f"reference-{index:05d}.parquet"


def _missing_shards(directory: Path, shards: int) -> list[int]:
    """Rank 0 looks, so that all ranks agree even where a file is slow to appear."""
    answer = [[index for index in range(shards) if not _shard_path(directory, index).exists()]]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """A micro-batch of rows, in the order of the completions of `sequences`."""

    rows: Sequence[CompletionRow]
    sequences: Sequences

    @property
    def input(self) -> ModelInput:
        return self.sequences.input

    @property
    def targets(self) -> Targets:
        return self.sequences.targets


def row_batches(rows: Sequence[CompletionRow], batching: Batching, place: Place, head: Head) -> list[RowBatch]:
    """The micro-batches of a shard's rows."""
    bundles = _bundles(rows, batching)
    batches = []
    for bin_ in batching.bins([_row(bundle).tokens(shared_prompt=True) for bundle in bundles]):
        mine = [bundles[index] for index in bin_]
        sequences = lay_out([_row(bundle) for bundle in mine], place, head, shared_prompt=True, padded=batching.padded)
        batches.append(RowBatch(rows=list(itertools.chain.from_iterable(mine)), sequences=sequences))
    # An interleaved pipeline takes its micro-batches in groups: some are computed once more for nobody.
    return batches + [replace(batches[0], rows=())] * (-len(batches) % place.micro_batch_group)


def _of_rows(batching: Batching) -> Batching:
    """A padded micro-batch of pairs holds twice as many completions."""
    pairs = batching.pairs_a_micro_batch
    return batching if pairs is None else replace(batching, pairs_a_micro_batch=2 * pairs)


def _bundles(rows: Sequence[CompletionRow], batching: Batching) -> list[list[CompletionRow]]:
    """Rows of one prompt, which is then computed once for all of them; as many as fit into a micro-batch."""
    bundles: list[list[CompletionRow]] = []
    for row in rows:
        last = bundles[-1] if bundles else []
        fits = _row([*last, row]).tokens(shared_prompt=True) <= batching.tokens_a_micro_batch
        if last and batching.shared_prompt and not batching.padded and last[0].prompt_ids == row.prompt_ids and fits:
            last.append(row)
        else:
            bundles.append([row])
    return bundles


def _row(bundle: Sequence[CompletionRow]) -> Row:
    return Row(prompt=bundle[0].prompt_ids, completions=[row.completion_ids for row in bundle])


def _log_probs(model: Sequence[torch.nn.Module], batches: Sequence[RowBatch], place: Place) -> list[ReferenceLogProb]:
    """log p_ref of one shard's rows; empty on ranks that do not hold results."""

    def keep_sums(batch: RowBatch, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sums = batch.sequences.completion_sums(log_probs, place)
        return sums.sum(), sums

    kept = forward_backward(model, batches, keep_sums, forward_only=True)
    if not place.holds_results:
        return []
    return [
        ReferenceLogProb(row_id=row.row_id, log_prob=log_prob, tokens=len(row.completion_ids))
        for batch, sums in zip(batches, kept, strict=True)
        for row, log_prob in zip(batch.rows, sums.tolist()[: len(batch.rows)], strict=True)
    ]
