"""Changing the resolution of token maps: resizing into and out of windows, compression, refinement.

Each function has a plain PyTorch form, which defines it, and uses the Triton kernels where they run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .engine import Engine, kernels_for
from .grid import Region, TokenGrid, window_partition, window_unpartition

MOST_ELEMENTS = 2**31 - 1


def resize(x: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Bilinear, per frame: (b, t, h0, w0, c) -> (b, t, *size, c). `antialias` matters only where the map shrinks."""
    if x.shape[2:4] == size:
        return x
    b = x.shape[0]
    frames = rearrange(x, "b t h w c -> (b t) c h w")
    # PyTorch's CUDA kernel refuses more elements at a time, which a 4K map exceeds.
    at_a_time = max(1, MOST_ELEMENTS // (x.shape[-1] * max(size[0] * size[1], x.shape[2] * x.shape[3])))
    resized = [
        F.interpolate(part, size=size, mode="bilinear", align_corners=False, antialias=antialias)
        for part in frames.split(at_a_time)
    ]
    frames = resized[0] if len(resized) == 1 else torch.cat(resized)
    return rearrange(frames, "(b t) c h w -> b t h w c", b=b)


def to_windows(x: Tensor, size: tuple[int, int], region: Region, antialias: bool) -> Tensor:
    """The windows of a region of the map resized to `size`: (b, t, h, w, c) -> (b * nh * nw, tokens of a window, c)."""
    kernels = None if antialias else kernels_for(x)
    if kernels is None or not x.is_contiguous() or _is_whole(x, size, region):
        return window_partition(resize(x, size, antialias)[:, :, region.rows, region.columns], region.windows)
    t, h, w = x.shape[1:4]
    return kernels.resample(x.flatten(1, 3), kernels.Layout(t, h, w), kernels.Layout.of(t, region), size)


def from_windows(
    parts: list[Tensor], regions: list[Region], grid: TokenGrid, size: tuple[int, int], antialias: bool
) -> Tensor:
    """The inverse: windows of every region of a map of extent `grid`, resized to `size` -> (b, t, *size, c)."""
    kernels = None if antialias else kernels_for(parts[0])
    if kernels is not None and len(parts) == 1 and parts[0].is_contiguous() and regions[0].windows != (1, 1):
        target = kernels.Layout(grid.t, *size)
        return kernels.resample(parts[0], kernels.Layout.of(grid.t, regions[0]), target, size).unflatten(
            1, (grid.t, *size)
        )
    maps = [
        window_unpartition(part, region.windows, region.window_grid(grid.t))
        for part, region in zip(parts, regions, strict=True)
    ]
    if len(maps) == 1:
        return resize(maps[0], size, antialias)
    whole = maps[0].new_empty(maps[0].shape[0], *grid, maps[0].shape[-1])
    for part, region in zip(maps, regions, strict=True):
        whole[:, :, region.rows, region.columns] = part
    return resize(whole, size, antialias)


def _is_whole(x: Tensor, size: tuple[int, int], region: Region) -> bool:
    """Whether the region's only window is the map itself, so that there is nothing to move."""
    return region.windows == (1, 1) and x.shape[2:4] == size == (region.rows.stop, region.columns.stop)


def compress(x: Tensor, conv: nn.Module, ratio: int, engine: Engine) -> Tensor:
    """A strided depthwise convolution per frame: (b, t, h, w, c) -> (b, t, h // ratio, w // ratio, c).

    On a grid smaller than the kernel the edge is repeated up to the kernel's size, which folds the kernel onto the
    tokens there are.
    """
    b, _, h, w, _ = x.shape
    kernels = kernels_for(x)
    if kernels is not None and x.is_contiguous() and min(h, w) >= ratio:
        return kernels.compress(x, *engine.parameters(conv, x), ratio)
    frames = rearrange(x, "b t h w c -> (b t) c h w")
    if min(h, w) < ratio:
        frames = F.pad(frames, (0, max(ratio - w, 0), 0, max(ratio - h, 0)), mode="replicate")
    # Depthwise convolutions are several times faster on channel-first memory, the copy included.
    return rearrange(conv(frames.contiguous()), "(b t) c h w -> b t h w c", b=b)


def refine_blend(coarse: Tensor, conv: nn.Module | None, y: Tensor, gate: Tensor, engine: Engine) -> Tensor:
    """gate * y + (1 - gate) * conv(coarse), maps (b, t, h, w, c), gate (b, 1, c); `y` may be overwritten.

    conv: a depthwise 3x3x3 convolution over time and space; None leaves the coarse map as it is.
    """
    kernels = kernels_for(y)
    if kernels is not None and conv is not None and y.is_contiguous() and coarse.is_contiguous():
        return kernels.refine_blend_(coarse, *engine.parameters(conv, coarse), y, gate)
    if conv is not None:
        coarse = conv(rearrange(coarse, "b t h w c -> b c t h w").contiguous())
        coarse = rearrange(coarse, "b c t h w -> b t h w c")
    return torch.lerp(coarse, y, gate[:, :, None, None].to(y.dtype))
