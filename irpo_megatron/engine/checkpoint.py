"""Megatron distributed checkpoints: a folder with the model's `config.json` and `state/`, for any layout.

A folder appears whole or not at all: every rank writes below a temporary name, rank 0 renames.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from irpo_megatron.artifacts import Json, partial_directory, read_json, write_json
from irpo_megatron.engine.checkpoint_metadata import EXTRA_STATE, read_metadata
from irpo_megatron.engine.optimizer import Optimizer
from irpo_megatron.engine.policy import Policy
from irpo_megatron.rank_log import event

logger = logging.getLogger(__name__)

STATE = "state"
CONFIG = "config.json"
TRAINING = "training.json"


class CheckpointWriter:
    """Writes checkpoints; on CUDA while training goes on, one at a time.

    Its methods are collective: every rank calls them, in the same order.
    """

    def __init__(self, *, asynchronous: bool) -> None:
        """`asynchronous`: copy to CPU memory, return, and write from a process of its own."""
        self._queue = AsyncCallsQueue() if asynchronous else None

    def save_model(self, directory: Path, model: Sequence[Policy], config: Json) -> None:
        """Write the weights, and the Hugging Face configuration that describes them."""
        self._save(directory, model_state(model), {CONFIG: config})

    def save_training(
        self,
        directory: Path,
        model: Sequence[Policy],
        optimizer: Optimizer,
        files: Mapping[str, Json],
        *,
        then: Callable[[], None],
    ) -> None:
        """Write all that training needs to go on exactly: weights, AdamW's moments, the schedule.

        Args:
            files: JSON objects to write beside it, by name.
            then: Called on rank 0 once the checkpoint is there.
        """
        state = model_state(model)
        self._save(directory, {**state, **optimizer.sharded_state(state, is_loading=False)}, files, then=then)

    def look(self) -> None:
        """Publish what has been written meanwhile."""
        if self._queue is not None:
            self._queue.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Wait until everything is written and published."""
        if self._queue is not None:
            self._queue.maybe_finalize_async_calls(blocking=True)

    def _save(
        self,
        directory: Path,
        state: dict[str, Any],
        files: Mapping[str, Json],
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self.finish()
        partial, replaced = partial_directory(directory), directory.with_name(f"{directory.name}.replaced")

        def prepare() -> None:
            # What a writer that was killed left: the point before, taken away between the two renames, comes back.
            if replaced.exists() and not directory.exists():
                replaced.rename(directory)
            for leftover in (partial, replaced):
                shutil.rmtree(leftover, ignore_errors=True)
            (partial / STATE).mkdir(parents=True)
            for name, value in files.items():
                write_json(partial / name, value)

        started = time.monotonic()

        def publish() -> None:
            # A stage that was killed after it had saved this step comes by again: never is a half-deleted folder in
            # sight.
            if directory.exists():
                directory.rename(replaced)
            partial.rename(directory)
            shutil.rmtree(replaced, ignore_errors=True)
            then()

        def appear() -> None:
            _on_main_rank(publish)
            _say("saved", directory, since=started)

        _on_main_rank(prepare)
        if self._queue is None:
            with _results_in_this_process():
                dist_checkpointing.save(state, str(partial / STATE))
            appear()
        else:
            request = dist_checkpointing.save(state, str(partial / STATE), async_sharded_save=True)
            request.add_finalize_fn(appear)
            self._queue.schedule_async_request(request)


@contextlib.contextmanager
def _results_in_this_process() -> Iterator[None]:
    """Megatron-Core passes what its writers say through a process that it starts for that, and that imports torch anew:
    over a second for each rank. Where the rank itself waits for the writers, it needs none.
    """
    queue_of_a_process = filesystem_async._results_queue
    filesystem_async._results_queue = queue.SimpleQueue()
    try:
        yield
    finally:
        filesystem_async._results_queue = queue_of_a_process


def load_model(directory: Path, model: Sequence[Policy]) -> None:
    """Read the weights, whatever layout wrote them.

    Raises:
        UserError: the folder is incomplete or its metadata is not a checkpoint's.
    """
    _fill_model(model, _load(directory, model_state(model)))


def load_training(directory: Path, model: Sequence[Policy], optimizer: Optimizer) -> None:
    """Go on from what `save_training` wrote, at this layout or another."""
    state = model_state(model)
    loaded = _load(directory, {**state, **optimizer.sharded_state(state, is_loading=True)})
    _fill_model(model, loaded)
    optimizer.load_state(loaded)


def read_config(directory: Path) -> Json:
    """The Hugging Face configuration of a checkpoint."""
    return read_json(directory / CONFIG)


def model_state(model: Sequence[Policy]) -> dict[str, Any]:
    """One entry a group of layers; the names of the tensors within do not depend on the grouping.

    Transformer Engine's extra states are left out. They are pickles, which a checkpoint must not hold, and nothing but
    the scales of FP8 (of recipe `delayed` their history), which the first steps find again.
    """
    return {
        f"model{number}": {
            name: tensor for name, tensor in chunk.sharded_state_dict().items() if not name.endswith(EXTRA_STATE)
        }
        for number, chunk in enumerate(model)
    }


def _fill_model(model: Sequence[Policy], state: dict[str, Any]) -> None:
    for number, chunk in enumerate(model):
        found = chunk.load_state_dict(state[f"model{number}"], strict=False)
        strays = [name for name in (*found.missing_keys, *found.unexpected_keys) if not name.endswith(EXTRA_STATE)]
        assert not strays, f"model and checkpoint do not both have {strays}"


def _load(directory: Path, state: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    read_metadata(directory / STATE)  # torch itself would unpickle whatever it holds
    loaded: dict[str, Any] = dist_checkpointing.load(state, str(directory / STATE))
    _say("loaded", directory, since=started)
    return loaded


def _say(what: str, directory: Path, *, since: float) -> None:
    seconds = time.monotonic() - since
    facts = event(what, checkpoint=str(directory), seconds=seconds)
    logger.info("%s %s in %.1f s", what, directory, seconds, extra=facts)


def _on_main_rank(action: Callable[[], object]) -> None:
    """Do something once, and let nobody go on before it is done."""
    dist.barrier()
    if dist.get_rank() == 0:
        action()
    dist.barrier()
