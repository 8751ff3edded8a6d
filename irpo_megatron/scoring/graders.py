"""Grading over several processes, none of which can take the stage with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import LifoQueue

from irpo_megatron.hardware import usable_cores
from irpo_megatron.tasks import Task
from irpo_megatron.tasks.helper_process import HelperProcess
from irpo_megatron.tasks.limits import Limits
from irpo_megatron.tasks.verdict import Judgement, Verdict


class Graders:
    """Worker processes, each started when it is first needed.

    What a judgement says depends on its completion and gold answer alone, so their number changes nothing.
    """

    def __init__(self, task: Task, workers: int | None, *, limits: Limits) -> None:
        """`workers` is their number; None is one for each CPU core that this process may use."""
        count = workers or usable_cores()
        self._workers = [
            HelperProcess("irpo_megatron.scoring.grader_worker", task.name, task.grading, limits=limits)
            for _ in range(count)
        ]
        self._idle: LifoQueue[HelperProcess] = LifoQueue()  # the last one back goes on: few samples start few workers
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(max_workers=count, thread_name_prefix="grading")

    def judge(self, completions: Sequence[str], gold: Sequence[str]) -> Iterator[Judgement]:
        """A judgement for each completion and its gold answer, in their order, each as soon as it is known.

        Raises:
            UserError: a worker does not start.
        """
        return self._threads.map(self._judge_one, completions, gold)

    def _judge_one(self, completion: str, gold: str) -> Judgement:
        worker = self._idle.get()
        try:
            reply = worker.ask({"completion": completion, "gold": gold})
        finally:
            self._idle.put(worker)
        if reply is None:
            return Judgement(None, Verdict.UNGRADED)
        return Judgement(reply["answer"], Verdict(reply["verdict"]))

    def close(self) -> None:
        """Give up what has not been graded, and end the workers."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()


@contextmanager
def graders_of(task: Task, workers: int | None) -> Iterator[Graders]:
    """Graders for a block, with the limits that hold everywhere."""
    graders = Graders(task, workers, limits=Limits())
    try:
        yield graders
    finally:
        graders.close()
