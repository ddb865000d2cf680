"""How GPUs read each other's buffers: where they are, by copies, or by copies through pinned host memory. Each pair is
checked once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops.dispatch import GATHER_KERNEL_MODULES, triton_for
from ...ops.gather import gather
from ..memory import may_pin

SLOTS = 2  # buffers that take turns: one is read while the other is packed
CHECKED_ROWS, CHECKED_WIDTH = 8192, 128  # 8 MiB of int64

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

    def gathered(self, index: int, slot: int) -> None:
        """Note that the member has read what it fetched in this slot, after what was launched on its stream."""

    def wait_for_readers(self, index: int, slot: int) -> None:
        """Let the member's stream wait until all others have read the buffer that it packed last in this slot."""

    def fetch(
        self, source: int, target: int, slot: int, part: Tensor, received: Callable[[], Tensor], in_place: bool
    ) -> Tensor:
        """What the target's stream may read for a part of the source's buffer: the part itself, where the target has
        access to it and can read it `in_place`, or a copy in the buffer `received()`. Call it in the target's thread.
        """
        return received().copy_(part)


class CudaCopies(Copies):
    """For CUDA and ROCm. Copies run on a stream for each pair, which waits for the source alone."""

    def __init__(self, devices: list[torch.device]):
        self._devices, self._links = devices, links(tuple(devices))
        self._own = [torch.cuda.default_stream(device) for device in devices]
        self._streams = {(s, t): torch.cuda.Stream(devices[s]) for s, t in permutations(range(len(devices)), 2)}
        self._packed, self._gathered = ([[torch.cuda.Event() for _ in devices] for _ in range(SLOTS)] for _ in range(2))
        self._filled, self._emptied = (
            [{pair: torch.cuda.Event() for pair in self._streams} for _ in range(SLOTS)] for _ in range(2)
        )
        self._readers: list[list[set[int]]] = [[set() for _ in devices] for _ in range(SLOTS)]
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

    def gathered(self, index: int, slot: int) -> None:
        self._gathered[slot][index].record(self._own[index])

    def wait_for_readers(self, index: int, slot: int) -> None:
        readers = self._readers[slot][index]
        for target in readers:
            self._own[index].wait_event(self._gathered[slot][target])
        readers.clear()

    def fetch(
        self, source: int, target: int, slot: int, part: Tensor, received: Callable[[], Tensor], in_place: bool
    ) -> Tensor:
        self._readers[slot][source].add(target)
        packed, pair = self._packed[slot][source], (self._devices[source], self._devices[target])
        if in_place and pair in self._links.readable:
            self._own[target].wait_event(packed)
            return part
        stream = self._streams[source, target]
        stream.wait_event(packed)
        if pair not in self._links.staged:
            return received().copy_(part, non_blocking=True)
        filled, emptied = self._filled[slot][source, target], self._emptied[slot][source, target]
        pinned = self._pinned_like((source, target, slot), part)
        stream.wait_event(emptied)
        pinned.copy_(part, non_blocking=True)
        filled.record(stream)
        self._own[target].wait_event(filled)
        copied = received().copy_(pinned, non_blocking=True)
        emptied.record(self._own[target])
        return copied

    def _pinned_like(self, key: tuple[int, int, int], buffer: Tensor) -> Tensor:
        held = self._pinned.get(key)
        if held is None or held.numel() < buffer.numel() or held.dtype != buffer.dtype:
            self.synchronize()  # the old one may still be read
            held = self._pinned[key] = torch.empty(buffer.numel(), dtype=buffer.dtype, pin_memory=may_pin())
        return held[: buffer.numel()].view(buffer.shape)


def copies_for(devices: list[torch.device]) -> Copies:
    """The copies between these devices, all of one type."""
    return CudaCopies(devices) if devices[0].type == "cuda" else Copies()


class Links(NamedTuple):
    """Pairs of devices (source, target). readable: the target's kernels read the source's memory. staged: copies go
    through host memory. All others copy directly.
    """

    readable: frozenset[tuple[torch.device, torch.device]]
    staged: frozenset[tuple[torch.device, torch.device]]


@lru_cache(maxsize=8)
@torch.no_grad()
def links(devices: tuple[torch.device, ...]) -> Links:
    """The links between these devices, all of one type. The log names the staged ones with the reason."""
    pairs = list(permutations(devices, 2))
    staged = {pair: reason for pair in pairs if (reason := _why_staged(*pair))}
    for (source, target), reason in staged.items():
        log.warning("UltraGen: %s to %s copies through host memory, which is slower: %s.", source, target, reason)
    readable = frozenset(pair for pair in pairs if pair not in staged and _is_readable(*pair))
    return Links(readable, frozenset(staged))


def _why_staged(source: torch.device, target: torch.device) -> str:
    if not torch.cuda.can_device_access_peer(target, source):
        return "these GPUs have no direct access to each other"
    values = _values(source, target)
    if torch.equal(values.to(source).to(target).cpu(), values):
        return ""
    return "direct copies arrive with wrong bits (often an IOMMU or PCIe ACS setting of the machine)"


def _is_readable(source: torch.device, target: torch.device) -> bool:
    """Whether the kernel of `gather` works, and reads the right bits. Copies in both directions come first: PyTorch
    enables access with them.
    """
    values = _values(source, target)
    order = torch.arange(len(values)).flip(0)
    own = torch.zeros(1, values.shape[1], dtype=values.dtype, device=target)
    if not triton_for(own, GATHER_KERNEL_MODULES):
        return False
    there = values.to(source)
    torch.cuda.synchronize(source)
    try:
        with torch.cuda.device(target):
            read = gather([own, there], order.to(target) + 1, triton=True)
    except ValueError:  # Triton asks CUDA whether the target may read this address
        return False
    return torch.equal(read.cpu(), values[order])


def _values(source: torch.device, target: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(source.index * 64 + target.index)
    return torch.randint(-(2**62), 2**62, (CHECKED_ROWS, CHECKED_WIDTH), generator=generator)
