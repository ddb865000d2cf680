"""Decoded frames of one video, waiting for the encoder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch


class _Arriving(NamedTuple):
    """A piece on its way from the device: where it goes, the host tensor it comes in, and when it has come."""

    where: tuple[slice, slice, slice]
    staged: torch.Tensor
    arrived: torch.cuda.Event | None


class FrameBuffer:
    """A video of shape (frames, height, width, 3) in 8 or 16 bits a channel, filled piece by piece in any order.

    It lies in RAM, or, larger than `memory_limit` bytes, in a file of `folder` that has no name (on Linux; elsewhere it
    goes when closed), so that no error and no kill leaves it behind. Use it as a context manager.
    """

    def __init__(self, frames: int, height: int, width: int, bits: int, folder: str, memory_limit: int):
        self.shape = (frames, height, width, 3)
        self.bits = bits
        self.on_disk = self.size(*self.shape[:3], bits) > memory_limit
        self._arriving: _Arriving | None = None
        self._file = tempfile.TemporaryFile(dir=folder) if self.on_disk else None
        try:
            self._pixels = self._allocate()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def size(frames: int, height: int, width: int, bits: int) -> int:
        """Bytes that a buffer takes."""
        return frames * height * width * 3 * (bits // 8)

    def _allocate(self) -> np.ndarray:
        dtype = np.uint8 if self.bits == 8 else np.uint16
        if self._file is None:
            return np.empty(self.shape, dtype)
        if hasattr(os, "posix_fallocate"):
            # A page of a sparse file that finds no room on the disk ends the process with a bus error: ask now.
            os.posix_fallocate(self._file.fileno(), 0, self.size(*self.shape[:3], self.bits))
        return np.memmap(self._file, dtype, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=self.shape)

    def __enter__(self) -> FrameBuffer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._arriving = self._pixels = None
        if self._file is not None:
            self._file.close()

    def write(self, frames: slice, rows: slice, columns: slice, pixels: torch.Tensor) -> None:
        """Take `pixels`, float (frames, rows, columns, 3) in 0..1 on any device, rounded there to the buffer's bits.

        On a GPU the copy runs on while the caller computes the next piece, and lands when that one is handed over.
        """
        piece = quantise(pixels, self.bits)
        if piece.is_cuda:
            staged = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)
            staged.copy_(piece, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(piece.device))
        else:
            staged, arrived = piece.cpu(), None
        self._land()
        self._arriving = _Arriving((frames, rows, columns), staged, arrived)

    def _land(self) -> None:
        if self._arriving is None:
            return
        where, staged, arrived = self._arriving
        if arrived is not None:
            arrived.synchronize()
        self._pixels[where] = staged.numpy().view(self._pixels.dtype)
        self._arriving = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames in order, (height, width, 3) uint8 or uint16. Complete once every piece was written."""
        self._land()
        yield from self._pixels


def quantise(pixels: torch.Tensor, bits: int) -> torch.Tensor:
    """Floats in 0..1 to the nearest of 2**bits levels.

    8: uint8. 16: the bits of a uint16 in an int16, as torch cannot do much with uint16 itself.
    """
    levels = pixels.float().clamp(0, 1).mul_(2**bits - 1).round_()
    return levels.to(torch.uint8) if bits == 8 else levels.to(torch.int32).to(torch.int16)
