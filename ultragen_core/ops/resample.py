"""Changing the resolution of token maps: resizing into and out of windows, compression, refinement.

Each function has a plain PyTorch form, which defines it, and uses the Triton kernels where they run.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention.engine import Engine, kernels_for, pieces
from ..grid import Region, TokenGrid, window_partition, window_unpartition

# Without kernels a refinement goes over the channels in so many parts, each with several channel-first copies.
REFINEMENT_PARTS = 8


@torch.compiler.disable  # a compiled graph would build the matrix in every call
@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a matrix made for sampling may serve training next
def _interpolation(length: int, target: int, antialias: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear resizing of one axis as a matrix (target, length), by PyTorch's own definition of it."""
    columns = torch.eye(length)[None, None]
    return F.interpolate(columns, (target, length), mode="bilinear", antialias=antialias)[0, 0].to(device, dtype)


def resize(x: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Bilinear, per frame: (b, t, h0, w0, c) -> (b, t, *size, c). `antialias` matters only where the map shrinks.

    One matrix product an axis, which a GPU does several times faster than the library's resizing.
    """
    if x.shape[2:4] == size:
        return x
    rows, columns = (
        _interpolation(length, target, antialias, x.dtype, x.device)
        for length, target in zip(x.shape[2:4], size, strict=True)
    )

    def resized(part: Tensor) -> Tensor:
        return columns @ (rows @ part.flatten(-2)).unflatten(-1, part.shape[-2:])

    if torch.is_grad_enabled():
        return resized(x)  # in the backward pass each piece of a map costs as much as the whole
    out = x.new_empty(*x.shape[:2], *size, x.shape[-1])
    for index, frame in enumerate(x.unbind(1)):  # one at a time: the product in between may be as large as the map
        out[:, index] = resized(frame)
    return out


def to_windows(x: Tensor, size: tuple[int, int], region: Region, antialias: bool) -> Tensor:
    """The windows of a region of the map resized to `size`: (b, t, h, w, c) -> (b * nh * nw, tokens of a window, c)."""
    kernels = None if antialias else kernels_for(x)
    if kernels is None or not x.is_contiguous() or _is_whole(x, size, region):
        return window_partition(resize(x, size, antialias)[:, :, region.rows, region.columns], region.windows)
    t, h, w = x.shape[1:4]
    return kernels.resample(x.flatten(1, 3), kernels.Layout(t, h, w), kernels.Layout.of(t, region), size)


def _is_whole(x: Tensor, size: tuple[int, int], region: Region) -> bool:
    """Whether the region's only window is the map itself, so that there is nothing to move."""
    return region.windows == (1, 1, 1) and x.shape[2:4] == size == (region.rows.stop, region.columns.stop)


def from_windows(
    parts: list[Tensor], regions: list[Region], grid: TokenGrid, size: tuple[int, int], antialias: bool
) -> Tensor:
    """The inverse: windows of every region of a map of extent `grid`, resized to `size` -> (b, t, *size, c).

    Takes the parts out of their list, so that none is held longer than needed.
    """
    kernels = None if antialias else kernels_for(parts[0])
    if kernels is not None and len(parts) == 1 and parts[0].is_contiguous():
        source, target = kernels.Layout.of(grid.t, regions[0]), kernels.Layout(grid.t, *size)
        return kernels.resample(parts[0], source, target, size).unflatten(1, (grid.t, *size))
    first = window_unpartition(parts.pop(0), regions[0].windows, regions[0].window_grid(grid.t))
    if not parts:
        return resize(first, size, antialias)
    whole = first.new_empty(first.shape[0], *grid, first.shape[-1])
    whole[:, :, regions[0].rows, regions[0].columns] = first
    for region in regions[1:]:
        part = window_unpartition(parts.pop(0), region.windows, region.window_grid(grid.t))
        whole[:, :, region.rows, region.columns] = part
    return resize(whole, size, antialias)


def compress(x: Tensor, conv: nn.Module, ratio: int, engine: Engine) -> Tensor:
    """A strided depthwise convolution per frame: (b, t, h, w, c) -> (b, t, h // ratio, w // ratio, c).

    On a grid smaller than the kernel the edge is repeated up to the kernel's size, which folds the kernel onto the
    tokens there are.
    """
    for axis in (2, 3):
        length = x.shape[axis]
        if length < ratio:
            x = x.index_select(axis, torch.arange(ratio, device=x.device).clamp(max=length - 1))
    weight, bias = engine.parameters(conv, x)
    kernels = kernels_for(x)
    if kernels is not None and x.is_contiguous():
        return kernels.compress(x, weight, bias, ratio)
    h, w = (length // ratio for length in x.shape[2:4])
    cells = x[:, :, : h * ratio, : w * ratio].unflatten(3, (w, ratio)).unflatten(2, (h, ratio))
    taps = rearrange(weight, "c 1 kh kw -> kh 1 kw c")
    return (cells * taps).sum((3, 5)) + bias


def refine_blend(coarse: Tensor, conv: nn.Module | None, y: Tensor, gate: Tensor, engine: Engine) -> Tensor:
    """gate * y + (1 - gate) * conv(coarse resized to y's grid): coarse (b, t, h0, w0, c), y (b, t, h, w, c), gate
    (b, 1, c or 1); `y` may be overwritten.

    conv: a depthwise 3x3x3 convolution over time and space; None leaves the resized map as it is.
    """
    size = y.shape[2:4]
    if conv is None:
        return torch.lerp(resize(coarse, size), y, gate[:, :, None, None].to(y.dtype))
    weight, bias = engine.parameters(conv, coarse)
    kernels = kernels_for(y)
    if kernels is not None and y.is_contiguous() and coarse.is_contiguous():
        source = kernels.Layout(*coarse.shape[1:4])
        for start, length in pieces(y, 2, engine.tokens_at_a_time):
            # With the rows beside them, which the convolution sees.
            first, last = max(start - 1, 0), min(start + length + 1, size[0])
            strip = kernels.Layout(y.shape[1], last - first, size[1], row=first)
            # Named nowhere, so that one strip is gone before the next one is made.
            kernels.refine_blend_(
                kernels.resample(coarse.flatten(1, 3), source, strip, size).unflatten(1, strip[:3]),
                weight, bias, y, gate, first, (start, length),
            )  # fmt: skip
        return y
    coarse = resize(coarse, (size[0], coarse.shape[3]))
    gate = gate.expand(-1, -1, y.shape[-1])[:, :, None, None].to(y.dtype)

    def blended(part: slice) -> Tensor:
        # Depthwise 3D convolutions are several times faster on channel-first memory, the copy included.
        wide = _widen(coarse[..., part], size[1])
        refined = F.conv3d(wide, weight[part], bias[part], padding=1, groups=wide.shape[1])
        return torch.lerp(rearrange(refined, "b c t h w -> b t h w c"), y[..., part], gate[..., part])

    if torch.is_grad_enabled():
        return blended(slice(None))
    step = -(-y.shape[-1] // REFINEMENT_PARTS)
    for start in range(0, y.shape[-1], step):
        part = slice(start, start + step)
        y[..., part] = blended(part)
    return y


def _widen(x: Tensor, columns: int) -> Tensor:
    """(b, t, h, w, c) -> channel-first (b, c, t, h, columns)."""
    x = rearrange(x, "b t h w c -> b c t h w").contiguous()
    if x.shape[-1] == columns:
        return x
    return x @ _interpolation(x.shape[-1], columns, False, x.dtype, x.device).t()
