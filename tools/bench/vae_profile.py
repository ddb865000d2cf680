"""Where a decode's time goes: PyTorch's operations by their time on the GPU, with sizes, and convolutions' rates."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from .cells import table

ROWS = 20


class Entry(NamedTuple):
    """An operation: its calls, seconds and FLOPs in all."""

    calls: int = 0
    seconds: float = 0.0
    flops: int = 0


def profiled(work: Callable[[], object], device: torch.device) -> str:
    """Run `work` once -> a table of the operations with most time on the GPU, or on the CPU where there is none.

    Convolutions are listed by channels and kernel, others by name.
    """
    from ultragen_core.host.speed.timing import synchronize

    on_gpu = device.type == "cuda"
    start = time.perf_counter()
    with profile(record_shapes=True, acc_events=True) as recorded, torch.inference_mode():
        work()
        synchronize(device)
    wall, entries = time.perf_counter() - start, collections.defaultdict(Entry)
    for event in recorded.key_averages(group_by_input_shape=True):
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        # PyTorch's kernels are listed again under names of their own, this pack's only there.
        if micros and (event.device_type == DeviceType.CPU or event.key.startswith("_")):
            shapes = [shape for shape in event.input_shapes if shape]
            name, flops = described(event.key, shapes)
            before = entries[name]
            entries[name] = Entry(
                before.calls + event.count, before.seconds + micros / 1e6, before.flops + flops * event.count
            )
    busy = sum(entry.seconds for entry in entries.values())
    rows = []
    for name, (calls, seconds, flops) in sorted(entries.items(), key=lambda item: -item[1].seconds)[:ROWS]:
        rate = f"{flops / seconds / 1e12:.0f}" if flops else ""
        rows.append([name, str(calls), f"{seconds:.2f}", f"{seconds / busy:.0%}", rate])
    header = "operation", "calls", "s", "share", "TFLOP/s"
    return f"{wall:.1f} s under the profiler, operations {busy:.1f} s\n{table(header, rows)}"


def described(name: str, shapes: list[list[int]]) -> tuple[str, int]:
    """A name for the table, and the FLOPs of one call of a convolution of stride 1 without padding; 0 of others."""
    if name != "aten::cudnn_convolution":
        return name, 0
    x, weight = shapes[:2]
    outputs = math.prod(size - kernel + 1 for size, kernel in zip(x[2:], weight[2:], strict=True))
    kernel = "x".join(map(str, weight[2:]))
    return f"convolution {weight[1]} to {weight[0]}, {kernel}", 2 * x[0] * outputs * math.prod(weight)
