"""Parts of the work in threads of their own."""

from __future__ import annotations

import threading

import pytest
import torch

from irpo_megatron.generation.decoding.threads import Threads

CPU = torch.device("cpu")


@pytest.fixture
def four_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_parts_run_side_by_side_in_order_with_the_threads_shared_out() -> None:
    threads = Threads(CPU)
    assert threads.count == 4
    meeting = threading.Barrier(4, timeout=600)

    def work(part: int) -> tuple[int, int]:
        meeting.wait()  # nobody passes alone
        return part * 10, torch.get_num_threads()

    assert threads.map(work, range(4)) == [(part * 10, 1) for part in range(4)]
    assert torch.get_num_threads() == 4


def test_an_error_of_a_part_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        Threads(CPU).map(lambda part: 1 // part, [1, 0])


def test_another_device_is_handed_its_work_by_the_caller() -> None:
    threads = Threads(torch.device("meta"))
    assert threads.count == 1
    assert threads.map(lambda part: (part, threading.current_thread()), [1]) == [(1, threading.current_thread())]
