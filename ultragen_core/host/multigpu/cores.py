"""Keeps the threads that launch the work of several GPUs on one core of the processor.

They share the interpreter, so one of them runs at a time. On cores of their own each finds the interpreter's objects,
whose references the others have counted, in another core's cache. On one core an evaluation by two H200 takes half of
the processor time; at 832x480, 81 frames, where hosts set the pace, 0.18 s in place of 0.26 (T3-Video's rule).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

THREAD_STATE = Path("/proc/thread-self/stat")  # of Linux alone
CORE_FIELD = 36  # of those behind the thread's name, proc_pid_stat(5)
VALUES_OF_A_THREAD = 32768  # PyTorch gives a thread that computes on the CPU as many at least


def current_core() -> int | None:
    """The core that the calling thread runs on; None where the system does not tell."""
    try:
        state = THREAD_STATE.read_bytes()
    except OSError:
        return None
    return int(state.rpartition(b")")[2].split()[CORE_FIELD])


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Keep the calling thread on a core. None, or a core that it may not use: it stays where it is."""
    allowed = set() if core is None else os.sched_getaffinity(0)  # 0: the calling thread
    if core not in allowed or not _moved({core}):
        yield
        return
    try:
        yield
    finally:
        _moved(allowed)


def _moved(cores: set[int]) -> bool:
    """Move the calling thread to these cores. False where the system refuses: a filter of system calls does, and a
    container may have lost these cores, where the system has moved the thread by itself.
    """
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return False
    return True


def start_cpu_threads() -> None:
    """Let PyTorch start the threads that compute on the CPU for the calling thread. They keep the cores that it may use
    when it starts them, so call this before it stays on one.
    """
    torch.zeros(torch.get_num_threads() * VALUES_OF_A_THREAD).add_(1)
