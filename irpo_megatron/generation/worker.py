"""One of the workers that sample what a stage needs.

    python -m irpo_megatron.process irpo_megatron.generation.worker REQUEST.json

Any number of them, on any nodes, work on the same request; each is given the same file. A worker ends when every shard
is there, whoever made it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from irpo_megatron.claims import Claimant
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.generation.backends import load_generator
from irpo_megatron.generation.context import check_context
from irpo_megatron.generation.guard import ShardGuard
from irpo_megatron.generation.jobs import Job, plan_job
from irpo_megatron.generation.protocol import Completion, Generator
from irpo_megatron.generation.pulling import pull_shards
from irpo_megatron.generation.shards import Shard
from irpo_megatron.rank_log import event, note
from irpo_megatron.records import Sample
from irpo_megatron.requests import WorkerRequest
from irpo_megatron.stop import interrupt, on_stop_signal
from irpo_megatron.tasks import load_task

logger = logging.getLogger(__name__)

# Between two looks at what the others have done, when there is nothing else to do.
_LOOK_SECONDS = 0.5


def run(request: WorkerRequest) -> None:
    """Sample until every shard of every job is there.

    Raises:
        UserError: the model, its tokenizer or the engine is unusable, a prompt is too long for the model, or too many
            samples are of no use; found by this worker or by another.
    """
    lease_seconds = request.generation.lease_seconds
    with on_stop_signal(interrupt), Claimant(request.output, lease_seconds=lease_seconds) as claimant:
        jobs = [plan_job(request, job) for job in request.jobs]
        claimant.announce({name: len(shard.asked) for job in jobs for name, shard in job.shards.items()})
        guard = ShardGuard(request.output, request.generation, load_task(request.task))
        with closing(_Engine(request.generation)) as engine:
            _Worker(claimant, engine, guard).work(jobs)


class _Worker:
    """What this process does with the shards that it gets."""

    def __init__(self, claimant: Claimant, engine: _Engine, guard: ShardGuard) -> None:
        self._claimant = claimant
        self._engine = engine
        self._guard = guard

    def work(self, jobs: list[Job]) -> None:
        """Job after job; then wait for the others' shards, or take them over."""
        for shard in (shard for job in jobs for shard in job.shards.values() if shard.path.exists()):
            shard.check()
        while left := [job for job in jobs if not all(shard.path.exists() for shard in job.shards.values())]:
            if not any(self._work_on(job) for job in left):
                self._claimant.enter("waiting")
                time.sleep(_LOOK_SECONDS)

    def _work_on(self, job: Job) -> bool:
        """Sample shards of a job for as long as there are any to be had; whether there were."""
        first = self._claimant.claim(list(job.shards))  # before the engine is started, which may take minutes
        if first is None:
            return False
        if not self._engine.serves(job.model_folder):
            self._claimant.enter("loading")
        generator = self._engine.serving(job.model_folder)
        check_context(job.prompts, job.settings.max_tokens, generator.context)
        self._claimant.enter("sampling")

        def claimed() -> Iterator[tuple[str, Shard]]:
            name: str | None = first
            while name is not None:
                yield name, job.shards[name]
                name = self._claimant.claim(list(job.shards))

        def add(name: str, completion: Completion) -> None:
            self._claimant.add(name, tokens=len(completion.ids))

        for name, shard, rows in pull_shards(claimed(), generator, job.settings, add=add):
            if self._publish(name, shard, rows) and job.guarded:
                self._guard.watch(name, rows, among=list(job.shards))
            self._claimant.finish(name)
        return True

    def _publish(self, name: str, shard: Shard, rows: list[Sample]) -> bool:
        """Whether these rows are the shard's; otherwise they are given up."""
        if not (self._claimant.holds(name) and shard.publish(rows)):
            logger.warning("%s is another worker's by now, which took this one for dead", name)
            return False
        tokens, rate = sum(len(row.completion_ids) for row in rows), self._claimant.tokens_per_second
        facts = event("shard", shard=name, samples=len(rows), tokens=tokens, tokens_per_second=rate)
        logger.info("%s: %d samples, %d tokens; %.0f tokens/s so far", name, len(rows), tokens, rate or 0, extra=facts)
        return True


class _Engine:
    """The engine with one model at a time: the last one leaves the memory before the next one is loaded."""

    def __init__(self, settings: GenerationConfig) -> None:
        self._settings = settings
        self._folder: Path | None = None
        self._generator: Generator | None = None

    def serves(self, folder: Path) -> bool:
        return folder == self._folder

    def serving(self, folder: Path) -> Generator:
        """The engine with the model of a folder."""
        if self._generator is None or not self.serves(folder):
            self.close()
            started = time.monotonic()
            self._generator, self._folder = load_generator(self._settings, folder), folder
            note("engine", backend=self._settings.backend, model=str(folder), seconds=time.monotonic() - started)
        return self._generator

    def close(self) -> None:
        """Give back what the engine holds."""
        if self._generator is not None:
            self._generator.close()
        self._generator = self._folder = None
