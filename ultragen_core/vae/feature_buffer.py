"""The buffer for a video's features between the two passes of a decode or encode: on the device, or on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pinned_copy import empty_pinned
from ..rectangle import Rectangle
from .context import Context


class FeatureBuffer:
    """Features of `length` latent frames of `size` rows and columns, on `device`.

    pinned: whether reads may copy from the host through pinned memory, which does not stop the GPU.
    """

    def __init__(
        self,
        length: int,
        size: tuple[int, int],
        channels: int,
        dtype: torch.dtype,
        device: torch.device,
        pinned: bool = False,
    ):
        self.length, self.size, self.device, self._pinned = length, size, device, pinned
        self._frames = torch.empty((length, *size, channels), dtype=dtype, device=device)  # (t, h, w, c)
        if device.type == "cpu":
            # All processors touch the new pages at once. A GPU's copy would touch them one by one: 75 ms for a frame of
            # 4K instead of 10, while the GPU waits.
            self._frames.zero_()

    def write(self, index: int, rect: Rectangle, x: Tensor) -> None:
        """Store x (1, c, t, rows, columns) as the part `rect` of the frames from `index` on."""
        rows, columns = rect.slices
        self._frames[index : index + x.shape[2], rows, columns] = x[0].permute(1, 2, 3, 0)

    def move_to(self, device: torch.device) -> None:
        """Move what is stored to `device`."""
        self._frames = self._frames.to(device)
        self.device = device

    def read(self, index: int, rect: Rectangle, context: Context) -> Tensor:
        """The part `rect` of one frame, zero beyond the map: a new tensor (1, c, 1, *rect.size) on context.device."""
        inside = rect.clip(self.size)
        rows, columns = inside.slices
        part = self._frames[index : index + 1, rows, columns]
        if part.device.type == "cpu" and context.device.type == "cuda":
            part = self._upload(part, context.device)
        part = part.permute(3, 0, 1, 2)[None]
        out = context.empty(part.shape[1], 1, rect.size)
        if inside != rect:
            out.zero_()
        rows, columns = inside.slices_in(rect)
        out[..., rows, columns] = part
        return out

    def _upload(self, part: Tensor, device: torch.device) -> Tensor:
        """A part on the GPU, in its own memory layout: PyTorch's copy between layouts is slow on the host."""
        staged = empty_pinned(part.shape, part.dtype) if self._pinned else None
        if staged is None:
            self._pinned = False
            return part.contiguous().to(device)
        return staged.copy_(part).to(device, non_blocking=True)  # PyTorch keeps `staged` until the copy has ended
