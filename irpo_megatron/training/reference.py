"""The reference pass: log p_ref of every unique (prompt, completion) row, once an iteration.

    python -m irpo_megatron.process irpo_megatron.training.reference REQUEST.json

The reference is M_{t-1} itself, so no second model is ever in memory: its log-probs are computed forward-only, before
training, and stored. Shards that a killed pass has written are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from irpo_megatron.artifacts import ProgressWriter
from irpo_megatron.engine.loading import load_policy
from irpo_megatron.engine.parallel import Place, parallel_world
from irpo_megatron.engine.schedule import forward_backward
from irpo_megatron.records import Pair, ReferenceLogProb, read_rows, write_rows
from irpo_megatron.requests import ReferenceRequest
from irpo_megatron.training.batches import Sequences, pad_sequences
from irpo_megatron.training.log_probs import completion_log_probs
from irpo_megatron.training.rows import CompletionRow, unique_rows

ROWS_A_SHARD = 512


def run(request: ReferenceRequest) -> None:
    """Write `reference-*.parquet` of `ReferenceLogProb` rows."""
    rows = unique_rows(read_rows(request.pair_rows / "pairs.parquet", Pair))
    shards = [rows[start : start + ROWS_A_SHARD] for start in range(0, len(rows), ROWS_A_SHARD)]
    with parallel_world(request.parallel, threads=request.launch.threads) as place:
        model, architecture = load_policy(request.checkpoint)
        model.eval()
        missing = _missing_shards(request.output, len(shards))
        progress = (
            ProgressWriter(request.output, total=len(shards), unit="shards", done=len(shards) - len(missing))
            if place.is_main
            else None
        )
        # Each data-parallel replica takes every data_size-th shard; within a replica all ranks work on the same one.
        for index in missing[place.data_rank :: place.data_size]:
            log_probs = _log_probs(
                model,
                shards[index],
                sequences_at_once=2 * request.training.micro_batch_size,
                vocabulary=architecture.vocabulary,
                place=place,
            )
            if place.holds_results:
                write_rows(_shard_path(request.output, index), log_probs, ReferenceLogProb)
            if progress is not None:
                progress.advance(min(place.data_size, len(missing) - missing.index(index)))
        dist.barrier()


def _shard_path(directory: Path, index: int) -> Path:
    return directory / f"reference-{index:05d}.parquet"


def _missing_shards(directory: Path, shards: int) -> list[int]:
    """Rank 0 looks, so that all ranks agree even where a file is slow to appear."""
    answer = [[index for index in range(shards) if not _shard_path(directory, index).exists()]]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def _log_probs(
    model: torch.nn.Module,
    rows: Sequence[CompletionRow],
    *,
    sequences_at_once: int,
    vocabulary: int,
    place: Place,
) -> list[ReferenceLogProb]:
    """log p_ref of one shard's rows; empty on ranks that do not hold results."""

    def keep_log_probs(batch: Sequences, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sums = completion_log_probs(logits, batch, vocabulary=vocabulary, tensor_group=place.tensor_group)
        return sums.sum(), sums

    batches = [
        pad_sequences(
            [(row.prompt_ids, row.completion_ids) for row in rows[start : start + sequences_at_once]], place.device
        )
        for start in range(0, len(rows), sequences_at_once)
    ]
    kept = forward_backward(model, batches, lambda batch: batch, keep_log_probs, forward_only=True)
    if not place.holds_results:
        return []
    return [
        ReferenceLogProb(row_id=row.row_id, log_prob=value, tokens=len(row.completion_ids))
        for row, value in zip(rows, torch.cat(kept).tolist(), strict=True)
    ]
