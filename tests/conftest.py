"""Shared by all tests: helper modules by name, what needs a GPU skipped without one, and which worker takes what."""

import os
import signal
import sys
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

sys.path.insert(0, str(Path(__file__).parent))

if "PYTEST_XDIST_WORKER" in os.environ:  # of their starter the workers themselves are to be traced
    from support.tracing import leave_processes_out

    leave_processes_out()

# What a shell starts in the background ignores Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Folders whose files run longest, the longest first: a worker that began one of them last would end alone.
LONGEST = ("loop", "slurm", "invariants", "training", "conversion", "engine")


class ByFile(LoadFileScheduling):
    """A worker takes a file at a time, and all of the loop's: they share a run that takes minutes to make."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/loop" if nodeid.startswith("tests/loop/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """How work is shared where several workers run tests."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; skip tests with the marker `gpu` where torch finds no CUDA device."""
    items.sort(key=lambda item: (*LONGEST, item.path.parent.name).index(item.path.parent.name))
    of_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if of_gpu:
        import torch  # only here: most of the tests do without it

        if not torch.cuda.is_available():
            for item in of_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
