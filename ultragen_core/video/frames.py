"""Decoded frames of one video, waiting for the encoder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from ..vae.drain import Drain


class FrameBuffer:
    """A video of shape (frames, height, width, 3) in 8 or 16 bits a channel, filled piece by piece in any order.

    It lies in RAM, or, larger than `memory_limit` bytes, in a file of `folder` that has no name (on Linux; elsewhere it
    goes when closed), so that no error and no kill leaves it behind. Use it as a context manager. `pinned`: whether
    pieces may come from a GPU through pinned memory.
    """

    def __init__(
        self, frames: int, height: int, width: int, bits: int, folder: str, memory_limit: int, pinned: bool = True
    ):
        self.shape = (frames, height, width, 3)
        self.bits = bits
        self.on_disk = self.size(*self.shape[:3], bits) > memory_limit
        self._drain = Drain(pinned=pinned)
        self._broken: dict[torch.device, torch.Tensor] = {}
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
        self._drain = self._pixels = None
        if self._file is not None:
            self._file.close()

    def write(self, frames: slice, rows: slice, columns: slice, pixels: torch.Tensor) -> None:
        """Take `pixels`, float (frames, rows, columns, 3) in 0..1 on any device, rounded there to the buffer's bits.

        On a GPU the copy runs on while the caller computes what comes next.
        """
        self._note_broken(frames, pixels)
        target = torch.from_numpy(self._pixels if self.bits == 8 else self._pixels.view(np.int16))
        self._drain.copy(quantise(pixels, self.bits), target[frames, rows, columns])

    def _note_broken(self, frames: slice, pixels: torch.Tensor) -> None:
        # One flag a frame, which stays on the device: to look at it now would wait for the device.
        if pixels.device not in self._broken:
            self._broken[pixels.device] = torch.zeros(self.shape[0], dtype=torch.bool, device=pixels.device)
        self._broken[pixels.device][frames].logical_or_(~torch.isfinite(pixels).flatten(1).all(1))

    @property
    def not_finite(self) -> int:
        """How many frames were given NaN or infinity, which become black or white."""
        return int(sum(flags.cpu() for flags in self._broken.values()).count_nonzero()) if self._broken else 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames in order, (height, width, 3) uint8 or uint16. Complete once every piece was written."""
        self._drain.finish()
        yield from self._pixels


def quantise(pixels: torch.Tensor, bits: int) -> torch.Tensor:
    """Floats in 0..1 to the nearest of 2**bits levels.

    8: uint8. 16: the bits of a uint16 in an int16, as torch cannot do much with uint16 itself.
    """
    levels = pixels.float().clamp(0, 1).mul_(2**bits - 1).round_()
    return levels.to(torch.uint8) if bits == 8 else levels.to(torch.int32).to(torch.int16)
