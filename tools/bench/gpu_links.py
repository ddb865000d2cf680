"""Rates of the exchange between GPUs."""

from __future__ import annotations

import time

import torch

LINK_BYTES = (8 * 2**20, 32 * 2**20, 128 * 2**20)
ROW = 384  # int64 values: a token of 1536 channels in bf16
REPEATS = 6


def links(devices: list[torch.device]) -> None:
    """What one GPU reads of another, and all of all others, through the exchange's own classes."""
    from ultragen_core.host.multigpu import copies

    found, members = copies.links(tuple(devices)), range(len(devices))
    print(
        f"of {len(devices) * (len(devices) - 1)} pairs {len(found.readable)} read each other's memory,"
        f" {len(found.staged)} copy through host memory"
    )
    one_pair, all_to_all = {1: [0]}, {target: [s for s in members if s != target] for target in members}
    for size in LINK_BYTES:
        rates = [
            f"{name} {len(sources[1]) * size / fastest(devices, sources, size) / 1e9:.0f} GB/s into a GPU"
            for name, sources in (("one pair", one_pair), ("all to all", all_to_all))
        ]
        print(f"{size / 2**20:.0f} MiB a pair:", *rates)
    torch.cuda.set_device(devices[0])


def fastest(devices: list[torch.device], sources: dict[int, list[int]], size: int) -> float:
    """Seconds until every target has `size` bytes of each of its sources. sources: by the target."""
    from ultragen_core.host.multigpu.copies import CudaCopies
    from ultragen_core.ops.dispatch import GATHER_KERNEL_MODULES, triton_for
    from ultragen_core.ops.gather import MOST_PARTS, gather

    copies, rows, times = CudaCopies(devices), size // (8 * ROW), []
    packed = [torch.zeros(rows, ROW, dtype=torch.int64, device=device) for device in devices]
    received = {(s, t): torch.empty_like(packed[t]) for t in sources for s in sources[t]}
    order = {t: torch.arange(rows * len(sources[t]), device=devices[t]) for t in sources}
    for _ in range(REPEATS):
        copies.synchronize()
        start = time.perf_counter()
        for member in range(len(devices)):
            copies.packed(member, 0)
        for t in sources:
            with copies.streams_of(t):
                parts = [packed[t][:0]]
                triton = len(sources[t]) < MOST_PARTS and triton_for(parts[0], GATHER_KERNEL_MODULES)
                parts += [copies.fetch(s, t, 0, packed[s], lambda s=s, t=t: received[s, t], triton) for s in sources[t]]
                gather(parts, order[t], triton)
        copies.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
