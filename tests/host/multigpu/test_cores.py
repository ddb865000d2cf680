"""The threads that launch the work of several GPUs stay on one core, and leave nothing behind there."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import pytest
import torch

from ultragen_core.host.multigpu.cores import THREAD_STATE, current_core, on_core, start_cpu_threads

pytestmark = pytest.mark.skipif(not THREAD_STATE.exists(), reason="This system does not tell a thread's core.")
ALL = os.sched_getaffinity(0) if THREAD_STATE.exists() else set()


def test_a_thread_stays_on_the_core_until_the_context_ends():
    core = max(ALL)
    with pytest.raises(ValueError), on_core(core):
        assert os.sched_getaffinity(0) == {core} and current_core() == core
        raise ValueError
    assert os.sched_getaffinity(0) == ALL and current_core() in ALL


@pytest.mark.parametrize("core", [None, 1 + max(ALL, default=0)])
def test_without_a_core_that_it_may_use_a_thread_stays_where_it_is(core):
    with on_core(core):
        assert os.sched_getaffinity(0) == ALL


@pytest.mark.parametrize("refused", [0, 1])
def test_a_system_that_refuses_stops_no_evaluation(monkeypatch, refused):
    """As a filter of system calls does, or cores that were taken from a container after the thread went to one."""
    calls, move = itertools.count(), os.sched_setaffinity

    def moved(*args):
        if next(calls) == refused:
            raise PermissionError("not permitted")
        move(*args)

    monkeypatch.setattr(os, "sched_setaffinity", moved)
    try:
        with on_core(max(ALL)):
            assert os.sched_getaffinity(0) == (ALL, {max(ALL)})[refused]
    finally:
        move(0, ALL)


def cores_of_cpu_threads(prepare) -> list[set[int]]:
    """Of the threads that PyTorch starts for a thread of its own, which calls `prepare` and then computes on a core."""
    found = []

    def threads() -> set[int]:
        return {int(each.name) for each in Path("/proc/self/task").iterdir()}

    def work() -> None:
        torch.set_num_threads(2)
        before = threads()
        prepare()
        with on_core(max(ALL)):
            torch.zeros(2**20).add_(1)
        found.extend(os.sched_getaffinity(each) for each in threads() - before)

    count = torch.get_num_threads()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_num_threads(count)
    return found


@pytest.mark.skipif(len(ALL) < 2, reason="One core.")
def test_threads_that_compute_on_the_cpu_keep_all_cores():
    assert cores_of_cpu_threads(lambda: None) == [{max(ALL)}]
    assert cores_of_cpu_threads(start_cpu_threads) == [ALL]
