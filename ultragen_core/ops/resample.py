"""Resizing token maps into windows and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import Region, TokenGrid, window_partition, window_unpartition


@torch.compiler.disable  # a compiled graph would build the matrix in every call
@lru_cache(maxsize=64)  # a few KB each
@torch.inference_mode(False)  # a matrix made for sampling may serve training next
def interpolation_matrix(length: int, target: int, antialias: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear resizing of one axis as a matrix (target, length), by PyTorch's own definition of it."""
    columns = torch.eye(length)[None, None]
    return F.interpolate(columns, (target, length), mode="bilinear", antialias=antialias)[0, 0].to(device, dtype)


def resize(x: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Bilinear resizing of every frame: (b, t, h0, w0, c) -> (b, t, *size, c).

    antialias: matters only where the map shrinks.
    One matrix product per axis, which a GPU does several times faster than the library's resizing.
    """
    if x.shape[2:4] == size:
        return x
    rows, columns = (
        interpolation_matrix(length, target, antialias, x.dtype, x.device)
        for length, target in zip(x.shape[2:4], size, strict=True)
    )

    def resized(part: Tensor) -> Tensor:
        return columns @ (rows @ part.flatten(-2)).unflatten(-1, part.shape[-2:])

    if torch.is_grad_enabled():
        return resized(x)  # in the backward pass each piece of a map costs as much as the whole
    out = x.new_empty(*x.shape[:2], *size, x.shape[-1])
    for index, frame in enumerate(x.unbind(1)):  # one at a time: the intermediate may be as large as the map
        out[:, index] = resized(frame)
    return out


def to_windows(x: Tensor, size: tuple[int, int], region: Region, antialias: bool, triton: bool) -> Tensor:
    """Windows of a region of the map resized to `size`: (b, t, h, w, c) -> (b * nh * nw, tokens of a window, c)."""
    if antialias or not triton or not x.is_contiguous() or _is_whole_map(x.shape[2:4], size, region):
        return window_partition(resize(x, size, antialias)[:, :, region.rows, region.columns], region.windows)
    from . import resample_kernels as kernels

    t, h, w = x.shape[1:4]
    return kernels.resample(x, kernels.Layout(t, h, w), kernels.Layout.of(t, region), size)


def _is_whole_map(shape: tuple[int, int], size: tuple[int, int], region: Region) -> bool:
    """Whether the region's only window is a map of this shape, not resized, so that there is nothing to move."""
    return region.windows == (1, 1, 1) and shape == size == (region.rows.stop, region.columns.stop)


def from_windows_(
    parts: list[Tensor],
    regions: Sequence[Region],
    grid: TokenGrid,
    size: tuple[int, int],
    antialias: bool,
    triton: bool,
) -> Tensor:
    """The inverse: windows of every region of a map of extent `grid`, resized to `size` -> (b, t, *size, c).

    Empties the list `parts`, so that no part is held longer than needed.
    """
    whole_map = _is_whole_map((grid.h, grid.w), size, regions[0])
    if triton and not antialias and not whole_map and len(parts) == 1 and parts[0].is_contiguous():
        from . import resample_kernels as kernels

        source, target = kernels.Layout.of(grid.t, regions[0]), kernels.Layout(grid.t, *size)
        return kernels.resample(parts.pop(), source, target, size).unflatten(1, (grid.t, *size))
    first = window_unpartition(parts.pop(0), regions[0].windows, regions[0].window_grid(grid.t))
    if not parts:
        return resize(first, size, antialias)
    whole = first.new_empty(first.shape[0], *grid, first.shape[-1])
    whole[:, :, regions[0].rows, regions[0].columns] = first
    for region in regions[1:]:
        part = window_unpartition(parts.pop(0), region.windows, region.window_grid(grid.t))
        whole[:, :, region.rows, region.columns] = part
    return resize(whole, size, antialias)
