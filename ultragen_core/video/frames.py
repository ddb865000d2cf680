"""A buffer between the tiled decode and the encoder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from ..pinned_copy import PinnedCopyQueue


class FrameBuffer:
    """Holds a video of shape (frames, height, width, 3) in 8 or 16 bits, written in pieces in any order.

    Kept in RAM, or in a temporary file in `folder` if larger than `memory_limit` bytes. On Linux that file has no name,
    so that neither an error nor a kill leaves it behind; elsewhere it is deleted on close. A context manager.
    pinned: whether pieces may be copied from a GPU through pinned memory.
    """

    def __init__(
        self, frames: int, height: int, width: int, bits: int, folder: str, memory_limit: int, pinned: bool = True
    ):
        self.shape = (frames, height, width, 3)
        self.bits = bits
        self.on_disk = self.size(*self.shape[:3], bits) > memory_limit
        self._copies = PinnedCopyQueue(pinned)
        self._broken: dict[torch.device, torch.Tensor] = {}
        self._file = tempfile.TemporaryFile(dir=folder) if self.on_disk else None
        try:
            self._pixels = self._allocate()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def size(frames: int, height: int, width: int, bits: int) -> int:
        """Return the size of a buffer in bytes."""
        return frames * height * width * 3 * (bits // 8)

    def _allocate(self) -> np.ndarray:
        dtype = np.uint8 if self.bits == 8 else np.uint16
        if self._file is None:
            return np.empty(self.shape, dtype)
        if hasattr(os, "posix_fallocate"):
            # Writing to a sparse mapping on a full disk kills the process with SIGBUS, so allocate the blocks now.
            os.posix_fallocate(self._file.fileno(), 0, self.size(*self.shape[:3], self.bits))
        return np.memmap(self._file, dtype, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=self.shape)

    def __enter__(self) -> FrameBuffer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._copies = self._pixels = None
        if self._file is not None:
            self._file.close()

    def write(self, frames: slice, rows: slice, columns: slice, pixels: torch.Tensor) -> None:
        """Store `pixels`, float (frames, rows, columns, 3) in 0..1, quantised to the buffer's bits on their device.

        Copies from a GPU are asynchronous.
        """
        self._note_broken(frames, pixels)
        target = torch.from_numpy(self._pixels if self.bits == 8 else self._pixels.view(np.int16))
        self._copies.copy(quantise(pixels, self.bits), target[frames, rows, columns])

    def _note_broken(self, frames: slice, pixels: torch.Tensor) -> None:
        # One flag per frame, kept on the device: reading it here would synchronise.
        if pixels.device not in self._broken:
            self._broken[pixels.device] = torch.zeros(self.shape[0], dtype=torch.bool, device=pixels.device)
        self._broken[pixels.device][frames].logical_or_(~torch.isfinite(pixels).flatten(1).all(1))

    @property
    def not_finite(self) -> int:
        """Number of frames that got NaN or infinite values."""
        return int(sum(flags.cpu() for flags in self._broken.values()).count_nonzero()) if self._broken else 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames in order, (height, width, 3) uint8 or uint16.

        Iterate only after all pieces have been written.
        """
        self._copies.finish()
        yield from self._pixels


def quantise(pixels: torch.Tensor, bits: int) -> torch.Tensor:
    """Round floats in 0..1 to 2**bits levels.

    Returns uint8 for 8 bits. For 16 bits returns int16 that holds the bits of a uint16, because torch supports few
    operations on uint16.
    """
    levels = pixels.float().clamp(0, 1).mul_(2**bits - 1).round_()
    return levels.to(torch.uint8) if bits == 8 else levels.to(torch.int32).to(torch.int16)
