"""Copies from the device to the host that do not stop the device."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

BUFFER_BYTES = 64 * 2**20
DEPTH = 3  # copies that may be under way

log = logging.getLogger(__name__)


def empty_pinned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor | None:
    """Uninitialised pinned memory; None, with a warning, where there is none."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        log.warning("UltraGen VAE: no pinned memory, copying without it, which is slower (%s).", reason)
        return None


class PinnedCopyQueue:
    """Copies device tensors into host tensors through pinned memory, at most DEPTH copies behind the devices.

    A target is complete once `finish()` has returned. DEPTH is small, which also keeps the host from queueing minutes
    of work ahead of the device, so that an interruption takes effect at once. Where pinned memory is not wanted
    (`pinned`) or not available, each copy waits for the device: slower, with the same result.
    """

    def __init__(self, pinned: bool):
        self._pinned = pinned
        self._buffers: list[torch.Tensor] = []
        # Source in pinned memory, target, and the event after which the source is complete.
        self._pending: list[tuple[torch.Tensor, torch.Tensor, torch.cuda.Event] | None] = [None] * DEPTH
        self._next = 0

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue target.copy_(source), of equal shapes and dtypes. Sources may be on different devices.

        Only copies from a CUDA device to the host are queued, of at most BUFFER_BYTES; others run at once.
        """
        size = source.numel() * source.element_size()
        index = self._next
        if not source.is_cuda or target.is_cuda or size > BUFFER_BYTES or not self._pin(index):
            target.copy_(source)
            return
        self._next = (index + 1) % DEPTH
        self._complete(index)
        staged = self._buffers[index][:size].view(source.dtype).view(source.shape)
        staged.copy_(source, non_blocking=True)
        self._pending[index] = staged, target, torch.cuda.current_stream(source.device).record_event()

    def finish(self) -> None:
        """Wait until every queued copy is complete."""
        for step in range(DEPTH):
            self._complete((self._next + step) % DEPTH)

    def _pin(self, index: int) -> bool:
        """Whether buffer `index` exists, pinning it at first use. After one refusal no more is asked for."""
        if self._pinned and index == len(self._buffers):
            buffer = empty_pinned((BUFFER_BYTES,), torch.uint8)
            if buffer is None:
                self.finish()
                self._pinned = False
            else:
                self._buffers.append(buffer)
        return self._pinned

    def _complete(self, index: int) -> None:
        if self._pending[index] is not None:
            staged, target, copied = self._pending[index]
            copied.synchronize()
            target.copy_(staged)
            self._pending[index] = None
