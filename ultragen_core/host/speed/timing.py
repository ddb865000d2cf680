"""Times work on a device, and its peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

MOST_REPEATS = 3


def timed(run: Callable[[], object], device: torch.device, budget: float) -> float:
    """Return the least seconds that run() took.

    A first run compiles and tunes. It counts only if it alone took the budget of seconds; else as many more as fit into
    the budget are made, at least one and at most MOST_REPEATS.
    """
    spent = seconds_of(run, device)
    if spent > budget:
        return spent
    times: list[float] = []
    while not times or (spent + sum(times) < budget and len(times) < MOST_REPEATS):
        times.append(seconds_of(run, device))
    return min(times)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if wait := getattr(getattr(torch, device.type, None), "synchronize", None):
        wait()


def forget_peak(device: torch.device) -> None:
    if _counts_memory(device):
        getattr(torch, device.type).reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int:
    """The most bytes that were allocated since `forget_peak`; 0 where PyTorch does not count them."""
    return getattr(torch, device.type).max_memory_allocated() if _counts_memory(device) else 0


def _counts_memory(device: torch.device) -> bool:
    return hasattr(getattr(torch, device.type, None), "max_memory_allocated")
