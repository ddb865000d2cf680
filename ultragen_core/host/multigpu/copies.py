"""Copies between GPUs: directly where both can, else through pinned host memory. Each pair is checked once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from ..memory import may_pin

SLOTS = 2  # buffers that take turns: one is read while the other is packed
CHECKED_BYTES = 8 * 2**20

log = logging.getLogger(__name__)


class Copies:
    """Copies on the CPU, where devices are names alone and nothing waits: for tests."""

    def synchronize(self) -> None:
        """Wait until all devices have done what was launched."""

    @contextmanager
    def streams_of(self, index: int) -> Iterator[None]:
        """Around a member's exchanges, in its thread."""
        yield

    def moment(self, index: int):
        """The member's present point in its work, for `seconds`."""
        return time.perf_counter()

    def seconds(self, start, stop) -> float:
        """Between two moments of a member, after `synchronize`."""
        return stop - start

    def packed(self, index: int, slot: int) -> None:
        """Note that the member has packed its buffer, after what was launched on its stream."""

    def wait_for_readers(self, index: int, slot: int) -> None:
        """Let the member's stream wait until all others have read the buffer that it packed last in this slot."""

    def fetch(self, source: int, target: int, slot: int, buffer: Tensor, received: Tensor) -> None:
        """Copy a part of the source's buffer into the target's. Call it in the target's thread."""
        received.copy_(buffer)


class CudaCopies(Copies):
    """Copies on a stream for each pair, which waits for the source alone; for CUDA and ROCm."""

    def __init__(self, devices: list[torch.device]):
        self._devices, self._staged = devices, staged_pairs(tuple(devices))
        members = range(len(devices))
        self._own = [torch.cuda.default_stream(device) for device in devices]
        self._streams = {(s, t): torch.cuda.Stream(devices[s]) for s in members for t in members if s != t}
        self._packed = [[torch.cuda.Event() for _ in devices] for _ in range(SLOTS)]
        self._read = [{pair: torch.cuda.Event() for pair in self._streams} for _ in range(SLOTS)]
        self._emptied = [{pair: torch.cuda.Event() for pair in self._streams} for _ in range(SLOTS)]
        self._reads: list[list[set[int]]] = [[set() for _ in devices] for _ in range(SLOTS)]
        self._pinned: dict[tuple[int, int, int], Tensor] = {}

    def synchronize(self) -> None:
        for device in self._devices:
            torch.cuda.synchronize(device)

    @contextmanager
    def streams_of(self, index: int) -> Iterator[None]:
        """PyTorch copies between GPUs on the source's current stream of the thread, and lets the target's wait."""
        self._own[index] = torch.cuda.current_stream(self._devices[index])
        others = [source for source in range(len(self._devices)) if source != index]
        before = [torch.cuda.current_stream(self._devices[source]) for source in others]
        try:
            for source in others:
                torch.cuda.set_stream(self._streams[source, index])
            torch.cuda.set_device(self._devices[index])
            yield
        finally:
            for stream in before:
                torch.cuda.set_stream(stream)
            torch.cuda.set_device(self._devices[index])

    def moment(self, index: int) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._own[index])
        return event

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        return start.elapsed_time(stop) / 1000

    def packed(self, index: int, slot: int) -> None:
        self._packed[slot][index].record(self._own[index])

    def wait_for_readers(self, index: int, slot: int) -> None:
        readers, own = self._reads[slot][index], self._own[index]
        for target in readers:
            own.wait_event(self._read[slot][index, target])
        readers.clear()

    def fetch(self, source: int, target: int, slot: int, buffer: Tensor, received: Tensor) -> None:
        stream, read = self._streams[source, target], self._read[slot][source, target]
        stream.wait_event(self._packed[slot][source])
        if (self._devices[source], self._devices[target]) in self._staged:
            pinned = self._pinned_like((source, target, slot), buffer)
            stream.wait_event(self._emptied[slot][source, target])
            pinned.copy_(buffer, non_blocking=True)
            read.record(stream)
            self._own[target].wait_event(read)
            received.copy_(pinned, non_blocking=True)
            self._emptied[slot][source, target].record(self._own[target])
        else:
            received.copy_(buffer, non_blocking=True)
            read.record(stream)
        self._reads[slot][source].add(target)

    def _pinned_like(self, key: tuple[int, int, int], buffer: Tensor) -> Tensor:
        held = self._pinned.get(key)
        if held is None or held.numel() < buffer.numel() or held.dtype != buffer.dtype:
            self.synchronize()  # the old one may still be read
            held = self._pinned[key] = torch.empty(buffer.numel(), dtype=buffer.dtype, pin_memory=may_pin())
        return held[: buffer.numel()].view(buffer.shape)


def copies_for(devices: list[torch.device]) -> Copies:
    """The copies between these devices, all of one type."""
    return CudaCopies(devices) if devices[0].type == "cuda" else Copies()


@lru_cache(maxsize=8)
def staged_pairs(devices: tuple[torch.device, ...]) -> frozenset[tuple[torch.device, torch.device]]:
    """The pairs (source, target) that must copy through host memory; the log names them with the reason."""
    staged = {}
    for source in devices:
        for target in devices:
            if source != target and (reason := _why_staged(source, target)):
                staged[source, target] = reason
    for (source, target), reason in staged.items():
        log.warning("UltraGen: %s to %s copies through host memory, which is slower: %s.", source, target, reason)
    return frozenset(staged)


def _why_staged(source: torch.device, target: torch.device) -> str:
    if not torch.cuda.can_device_access_peer(target, source):
        return "these GPUs have no direct access to each other"
    generator = torch.Generator().manual_seed(source.index * 64 + target.index)
    values = torch.randint(-(2**62), 2**62, (CHECKED_BYTES // 8,), generator=generator)
    copied = values.to(source).to(target)
    if torch.equal(copied.cpu(), values):
        return ""
    return "direct copies arrive with wrong bits (often an IOMMU or PCIe ACS setting of the machine)"
