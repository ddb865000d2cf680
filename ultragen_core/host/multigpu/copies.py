"""Copies between GPUs: directly where both can, else through pinned host memory. Each pair is checked once."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor

from ..memory import may_pin

CHECKED_BYTES = 8 * 2**20

log = logging.getLogger(__name__)


class Copies:
    """Copies on the CPU, where devices are names alone and nothing waits: for tests."""

    def synchronize(self) -> None:
        """Wait until all devices have done what was launched."""

    def ready(self, index: int) -> object:
        """An event on the member's stream, after what was launched there."""

    def wait_for_read(self, index: int, read: object) -> None:
        """Let the member's stream wait for another member's copy."""

    def fetch(self, source: int, target: int, slot: int, buffer: Tensor, ready: object) -> tuple[Tensor, object]:
        """The source's buffer on the target's device, and the event after which it has been read. Call it in the
        target's thread.
        """
        return buffer.clone(), None


class CudaCopies(Copies):
    """Copies on a stream of their own for each pair, which wait for the source alone; for CUDA and ROCm."""

    def __init__(self, devices: list[torch.device]):
        self._devices, self._staged = devices, staged_pairs(tuple(devices))
        self._streams: dict[tuple[int, int], torch.cuda.Stream] = {}
        self._pinned: dict[tuple[int, int, int], Tensor] = {}

    def synchronize(self) -> None:
        for device in self._devices:
            torch.cuda.synchronize(device)

    def ready(self, index: int) -> torch.cuda.Event:
        return torch.cuda.current_stream(self._devices[index]).record_event()

    def wait_for_read(self, index: int, read: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._devices[index]).wait_event(read)

    def fetch(self, source: int, target: int, slot: int, buffer: Tensor, ready: torch.cuda.Event):
        pair = source, target
        if pair not in self._streams:
            self._streams[pair] = torch.cuda.Stream(self._devices[source])
        stream, device = self._streams[pair], self._devices[target]
        received = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        if (self._devices[source], device) not in self._staged:
            # PyTorch copies on the source's current stream, and lets the target's wait for it.
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                received.copy_(buffer, non_blocking=True)
                return received, stream.record_event()
        pinned = self._pinned_like((source, target, slot), buffer)
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            pinned.copy_(buffer, non_blocking=True)
            copied = stream.record_event()
        own = torch.cuda.current_stream(device)
        own.wait_event(copied)
        received.copy_(pinned, non_blocking=True)
        return received, own.record_event()

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
