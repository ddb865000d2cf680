"""Device-to-host copies that do not stop the device."""

from __future__ import annotations

import torch

PINNED_BYTES = 64 * 2**20


class Drain:
    """Copies device tensors into host tensors through pinned memory, a few copies behind the device.

    A target is complete once `finish()` has returned. Being at most `depth` copies behind also keeps the host from
    queueing work for minutes ahead, so that an interruption is obeyed at once.
    """

    def __init__(self, depth: int = 3):
        self._slots: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._pending: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * depth
        self._next = 0

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        size = source.numel() * source.element_size()
        if not source.is_cuda or size > PINNED_BYTES:
            target.copy_(source)
            return
        slot, self._next = self._next, (self._next + 1) % len(self._pending)
        self._settle(slot)
        if slot == len(self._slots):
            pinned = torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
            self._slots.append((pinned, torch.cuda.Event()))
        buffer, event = self._slots[slot]
        staged = buffer[:size].view(source.dtype).view(source.shape)
        staged.copy_(source, non_blocking=True)
        event.record()
        self._pending[slot] = staged, target

    def finish(self) -> None:
        for step in range(len(self._pending)):
            self._settle((self._next + step) % len(self._pending))

    def _settle(self, slot: int) -> None:
        if self._pending[slot] is not None:
            staged, target = self._pending[slot]
            self._slots[slot][1].synchronize()
            target.copy_(staged)
            self._pending[slot] = None
