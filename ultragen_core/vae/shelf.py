"""Where a video's features wait between the two halves of a decode or encode: on the device, or on the host."""

from __future__ import annotations

import torch

from .geometry import Window
from .joint import Kit


class Shelf:
    """Features of `length` latent frames of `size` rows and columns, kept on the device `home`."""

    def __init__(self, length: int, size: tuple[int, int], home: torch.device):
        self.length, self.size, self.home = length, size, home
        self._frames: torch.Tensor | None = None  # (t, h, w, c)

    def put(self, start: int, window: Window, x: torch.Tensor) -> None:
        """Keep x (1, c, t, rows, columns) as the part `window` of the frames from `start`."""
        channels, frames = x.shape[1:3]
        if self._frames is None:
            self._frames = torch.empty((self.length, *self.size, channels), dtype=x.dtype, device=self.home)
        rows, columns = window.inside(Window.whole(self.size))
        self._frames[start : start + frames, rows, columns] = x[0].permute(1, 2, 3, 0)

    def move(self, home: torch.device) -> None:
        """Keep everything on `home` from now on."""
        self.home = home
        self._frames = self._frames.to(home)

    def get(self, index: int, window: Window, kit: Kit) -> torch.Tensor:
        """One frame (1, c, 1, rows, columns) of `window`, zero beyond the image."""
        inside = window.clip(self.size)
        rows, columns = inside.inside(Window.whole(self.size))
        part = self._frames[index : index + 1, rows, columns].permute(3, 0, 1, 2)[None]
        out = kit.empty(part.shape[1], 1, window.size)
        if inside != window:
            out.zero_()
        rows, columns = inside.inside(window)
        out[..., rows, columns] = part
        return out
