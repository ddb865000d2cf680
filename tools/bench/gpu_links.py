"""Rates of the exchange between GPUs."""

from __future__ import annotations

import time

import torch

LINK_BYTES = (8 * 2**20, 32 * 2**20, 128 * 2**20)
ROW = 384  # int64 values: a token of 1536 channels in bf16


def links(devices: list[torch.device]) -> None:
    """What one GPU reads of another, and all of all others, through the exchange's own classes."""
    from ultragen_core.host.multigpu import copies as module
    from ultragen_core.ops.dispatch import GATHER_KERNEL_MODULES, triton_for
    from ultragen_core.ops.gather import gather

    found = module.links(tuple(devices))
    members = range(len(devices))
    print(
        f"of {len(devices) * (len(devices) - 1)} pairs {len(found.readable)} read each other's memory,"
        f" {len(found.staged)} copy through host memory"
    )
    copies = module.CudaCopies(devices)
    for size in LINK_BYTES:
        rows = size // (8 * ROW)
        buffers = [torch.zeros(rows, ROW, dtype=torch.int64, device=device) for device in devices]
        received = {(s, t): torch.empty_like(buffers[t]) for s in members for t in members}
        order = [torch.arange(rows * (len(devices) - 1), device=device) for device in devices]
        rates = {}
        for name, chosen in (
            ("one pair", {1: [0]}),
            ("all to all", {t: [s for s in members if s != t] for t in members}),
        ):
            times = []
            for _ in range(6):
                copies.synchronize()
                start = time.perf_counter()
                for source in members:
                    copies.packed(source, 0)
                for target, sources in chosen.items():
                    with copies.streams_of(target):
                        parts = [buffers[target][:0]]
                        for s in sources:
                            parts.append(copies.fetch(s, target, 0, buffers[s], lambda s=s: received[s, target]))
                        gather(parts, order[target][: rows * len(sources)], triton_for(parts[0], GATHER_KERNEL_MODULES))
                copies.synchronize()
                times.append(time.perf_counter() - start)
            rates[name] = len(chosen[1]) * size / min(times) / 1e9
        print(
            f"{size / 2**20:.0f} MiB a pair:", *(f"{name} {rate:.0f} GB/s into a GPU" for name, rate in rates.items())
        )
    torch.cuda.set_device(devices[0])
