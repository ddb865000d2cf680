"""Rates of copies between GPUs."""

from __future__ import annotations

import time

import torch

LINK_BYTES = (8 * 2**20, 32 * 2**20, 128 * 2**20)


def links(devices: list[torch.device]) -> None:
    """Copies between two GPUs and between all, through the exchange's own class."""
    from ultragen_core.host.multigpu.copies import CudaCopies, staged_pairs

    staged = staged_pairs(tuple(devices))
    pairs = [(a, b) for a in range(len(devices)) for b in range(len(devices)) if a != b]
    print(f"direct copies with the right bits: {len(pairs) - len(staged)} of {len(pairs)} pairs")
    copies = CudaCopies(devices)
    for size in LINK_BYTES:
        buffers = [torch.zeros(size // 8, dtype=torch.int64, device=device) for device in devices]
        received = [torch.empty_like(buffer) for buffer in buffers]
        rates = {}
        for name, chosen in (("one pair", [(0, 1)]), ("all to all", pairs)):
            times = []
            for _ in range(6):
                copies.synchronize()
                start = time.perf_counter()
                for source, target in chosen:
                    with copies.streams_of(target):
                        copies.packed(source, 0)
                        copies.fetch(source, target, 0, buffers[source], received[target])
                copies.synchronize()
                times.append(time.perf_counter() - start)
            into_one = sum(1 for _, target in chosen if target == chosen[0][1])
            rates[name] = into_one * size / min(times) / 1e9
        print(
            f"{size / 2**20:.0f} MiB a pair:", *(f"{name} {rate:.0f} GB/s into a GPU" for name, rate in rates.items())
        )
    torch.cuda.set_device(devices[0])
