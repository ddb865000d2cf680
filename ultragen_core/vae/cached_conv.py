"""A causal convolution with its feature cache, over one rectangle of a map."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.vae import DeferredAdd
from .context import Context
from .functional import convolve
from .geometry import Rect


class CachedConv:
    """A convolution that keeps the input frames that the next call needs, as `feat_cache` does in Wan's own code.

    Its input is assembled in one buffer: cached frames, new frames, zeros beyond the map's edge. Nothing is padded or
    concatenated. Call `input_buffer`, write the new frames into it, then call the object. A 2D convolution has no
    cache and works frame by frame.

    module: one of ComfyUI's convolutions. rect: the input rectangle, which may reach beyond the map. map_size: rows
    and columns of the whole input map. image_rect: the part of `rect` inside the map, which the caller writes.
    """

    def __init__(self, context: Context, module: nn.Module, rect: Rect, map_size: tuple[int, int]):
        self.context, self.size = context, rect.size
        self.image_rect = rect.clip(map_size)
        self._weight, self._bias = context.convolution(module)
        self._stride = tuple(module.stride)
        self._inside = self.image_rect.slices_in(rect)
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
        self._buffer = self.context.empty(self._weight.shape[1], cached + frames, self.size)
        if cached:
            self._buffer[:, :, :cached] = 0 if self._cache is None else self._cache
        new = self._buffer[:, :, cached:]
        rows, columns = self._inside
        for band in (new[..., : rows.start, :], new[..., rows.stop :, :]):
            band.zero_()
        for band in (new[..., rows, : columns.start], new[..., rows, columns.stop :]):
            band.zero_()
        return new[..., rows, columns]

    def update_cache(self) -> Tensor:
        """Keep the buffer's last frames for the next call. Returns the buffer, which the object no longer holds."""
        buffer, self._buffer = self._buffer, None
        if self._cache_frames:
            last = buffer[:, :, -self._cache_frames :]
            if self._cache is None:
                self._cache = self.context.empty(self._weight.shape[1], self._cache_frames, self.size).zero_()
            self._cache[:, :, self._cache_frames - last.shape[2] :] = last
        return buffer

    def __call__(self) -> DeferredAdd:
        """Convolve the buffer, without padding: the result is smaller than `size` by the kernel's halo."""
        buffer = self.update_cache()
        weight = self._weight if self._weight.ndim == 4 else self._weight[:, :, -buffer.shape[2] :]
        return convolve(buffer, weight, self._bias, self._stride, self.context.autotune)
