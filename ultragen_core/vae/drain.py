"""Device-to-host copies that do not stop the device."""

from __future__ import annotations

import logging

import torch

PINNED_BYTES = 64 * 2**20


class Drain:
    """Copies device tensors into host tensors through pinned memory, a few copies behind the device.

    A target is complete once `finish()` has returned. Being at most `depth` copies behind also keeps the host from
    queueing work for minutes ahead, so that an interruption is obeyed at once. Where pinned memory is not wanted
    (`pinned`) or not to be had, each copy waits for the device: slower, with the same result.
    """

    def __init__(self, depth: int = 3, pinned: bool = True):
        self._pinned = pinned
        self._slots: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._pending: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * depth
        self._next = 0

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        size = source.numel() * source.element_size()
        slot = self._next
        if not source.is_cuda or size > PINNED_BYTES or not self._pin(slot):
            target.copy_(source)
            return
        self._next = (slot + 1) % len(self._pending)
        self._settle(slot)
        buffer, event = self._slots[slot]
        staged = buffer[:size].view(source.dtype).view(source.shape)
        staged.copy_(source, non_blocking=True)
        event.record()
        self._pending[slot] = staged, target

    def _pin(self, slot: int) -> bool:
        """Whether there is pinned memory for this slot. Once it is refused, nothing more is asked for."""
        if self._pinned and slot == len(self._slots):
            try:
                pinned = torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                logging.warning("UltraGen VAE: no pinned memory, copying without it, which is slower (%s).", reason)
                self.finish()
                self._pinned = False
            else:
                self._slots.append((pinned, torch.cuda.Event()))
        return self._pinned

    def finish(self) -> None:
        for step in range(len(self._pending)):
            self._settle((self._next + step) % len(self._pending))

    def _settle(self, slot: int) -> None:
        if self._pending[slot] is not None:
            staged, target = self._pending[slot]
            self._slots[slot][1].synchronize()
            target.copy_(staged)
            self._pending[slot] = None
