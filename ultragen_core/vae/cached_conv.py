"""A causal convolution with its feature cache, over one rectangle of a map."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.vae import DeferredAdd
from ..rectangle import Rectangle
from .context import Context
from .functional import convolve
from .pixel_pairs import as_pairs, as_pixels, pairs_pay


class CachedConv:
    """A convolution that keeps the input frames that the next call needs, as `feat_cache` does in Wan's own code.

    Its input is assembled in one buffer: cached frames, new frames, zeros beyond the map's edge. Nothing is padded or
    concatenated. Call `input_buffer`, write the new frames into it, then call the object. A 2D convolution has no
    cache and works frame by frame.

    module: one of ComfyUI's convolutions. rect: the input rectangle, which may reach beyond the map. map_size: rows
    and columns of the whole input map. image_rect: the part of `rect` inside the map, which the caller writes.
    """

    def __init__(self, context: Context, module: nn.Module, rect: Rectangle, map_size: tuple[int, int]):
        self.context, self.size = context, rect.size
        self.image_rect = rect.clip(map_size)
        self._weight, self._bias = context.convolution(module)
        self._stride = tuple(module.stride)
        in_pairs = pairs_pay(self._weight, self._stride, rect.size[1])
        self._paired_weight = context.paired_weight(module) if in_pairs else None
        self._inside = rows, columns = self.image_rect.slices_in(rect)
        every = slice(None)
        borders = [(slice(0, rows.start), every), (slice(rows.stop, rect.size[0]), every)]
        borders += [(rows, slice(0, columns.start)), (rows, slice(columns.stop, rect.size[1]))]
        # Most tiles touch no edge, and a call on an empty border costs the host as much as one on a whole map.
        self._borders = [each for each in borders if all(part == every or part.start < part.stop for part in each)]
        self._cache_frames = self._weight.shape[2] - self._stride[0] if self._weight.ndim == 5 else 0
        # Before the first frame ComfyUI 0.3.75 puts frames of zeros; 0.30.0 drops the part of the kernel that would
        # read them. The results differ by rounding, so we follow the installed version: the attribute `_padding` is a
        # tuple in 0.3.75. A convolution strided in time only caches the first frame.
        self._shortens_kernel = self._stride[0] > 1 or not isinstance(getattr(module, "_padding", 0), tuple)
        self._cache: Tensor | None = None
        self._buffer: Tensor | None = None

    def input_buffer(self, frames: int) -> Tensor:
        """Start an input of `frames` new frames. Returns the part to write, (1, c, frames, *image_rect.size)."""
        cached = 0 if self._cache is None and frames == 1 and self._shortens_kernel else self._cache_frames
        self._buffer = new = self.context.empty(self._weight.shape[1], cached + frames, self.size)
        if cached:
            before, new = new.narrow(2, 0, cached), new.narrow(2, cached, frames)
            before.zero_() if self._cache is None else before.copy_(self._cache)
        for border in self._borders:
            new[(..., *border)].zero_()
        return new[(..., *self._inside)] if self._borders else new

    def update_cache(self) -> Tensor:
        """Keep the buffer's last frames for the next call. Returns the buffer, which the object no longer holds."""
        buffer, self._buffer = self._buffer, None
        if self._cache_frames:
            if self._cache is None:
                self._cache = self.context.empty(self._weight.shape[1], self._cache_frames, self.size).zero_()
            frames = min(buffer.shape[2], self._cache_frames)
            newest = self._cache.narrow(2, self._cache_frames - frames, frames)
            newest.copy_(buffer.narrow(2, buffer.shape[2] - frames, frames))
        return buffer

    def __call__(self) -> DeferredAdd:
        """Convolve the buffer, without padding: the result is smaller than `size` by the kernel's halo."""
        buffer = self.update_cache()
        weight, frames = self._weight, buffer.shape[2]
        if weight.ndim == 5 and frames < weight.shape[2]:
            weight = weight[:, :, -frames:]
        elif self._paired_weight is not None:
            pairs = convolve(as_pairs(buffer), self._paired_weight, None, self._stride).value
            return DeferredAdd(as_pixels(pairs), self._bias)
        return convolve(buffer, weight, self._bias, self._stride)
