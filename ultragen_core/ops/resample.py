"""Resizing token maps into windows and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import Region, TokenGrid, window_partition, window_unpartition
from . import dispatch


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

    return _interpolated(x, rows, columns)


def _interpolated(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Every frame of x (b, t, h0, w0, c) by matrices (h, h0) and (w, w0) -> (b, t, h, w, c)."""

    def resized(part: Tensor) -> Tensor:
        return columns @ (rows @ part.flatten(-2)).unflatten(-1, part.shape[-2:])

    if torch.is_grad_enabled():
        return resized(x)  # in the backward pass each piece of a map costs as much as the whole
    out = x.new_empty(*x.shape[:2], len(rows), len(columns), x.shape[-1])
    for index, frame in enumerate(x.unbind(1)):  # one at a time: the intermediate may be as large as the map
        out[:, index] = resized(frame)
    return out


class Part(NamedTuple):
    """Where a map (b, t, rows, columns, c) belongs in a larger one of `size` (h, w): from this row and column on."""

    row: int
    column: int
    size: tuple[int, int]


def resize_part(
    x: Tensor, part: Part, target: tuple[slice, slice], size: tuple[int, int], antialias: bool, triton: bool
) -> Tensor:
    """Rows and columns `target` of the larger map resized to `size`: (b, t, h0, w0, c) -> (b, t, rows, columns, c).

    x: a part of the map that holds every position which these read.
    """
    (rows, columns), (h, w) = target, x.shape[2:4]
    if part.size == size:
        y, left = rows.start - part.row, columns.start - part.column
        return x[:, :, y : y + rows.stop - rows.start, left : left + columns.stop - columns.start]
    if triton and not antialias and x.is_contiguous():
        return _resample_part(x, part, Region(rows, columns, (1, 1, 1)), size).unflatten(
            1, (x.shape[1], rows.stop - rows.start, columns.stop - columns.start)
        )
    matrices = (
        interpolation_matrix(whole, wanted, antialias, x.dtype, x.device)[span, start : start + length]
        for whole, wanted, span, start, length in zip(part.size, size, target, part[:2], (h, w), strict=True)
    )
    return _interpolated(x, *matrices)


def part_to_windows(
    x: Tensor, part: Part, size: tuple[int, int], region: Region, antialias: bool, triton: bool
) -> Tensor:
    """As `to_windows`, from a part of the map that holds every position which the region reads."""
    if triton and not antialias and x.is_contiguous():
        return _resample_part(x, part, region, size)
    resized = resize_part(x, part, (region.rows, region.columns), size, antialias, triton)
    return window_partition(resized.contiguous(), region.windows)


def _resample_part(x: Tensor, part: Part, region: Region, size: tuple[int, int]) -> Tensor:
    kernels = dispatch.kernels("resample_kernels")
    t, h, w = x.shape[1:4]
    source = kernels.Layout(t, h, w, row=part.row, column=part.column)
    return kernels.resample(x, source, kernels.Layout.of(t, region), size, part.size)


def to_windows(x: Tensor, size: tuple[int, int], region: Region, antialias: bool, triton: bool) -> Tensor:
    """Windows of a region of the map resized to `size`: (b, t, h, w, c) -> (b * nh * nw, tokens of a window, c)."""
    if antialias or not triton or not x.is_contiguous() or _is_whole_map(x.shape[2:4], size, region):
        return window_partition(resize(x, size, antialias)[:, :, region.rows, region.columns], region.windows)
    kernels = dispatch.kernels("resample_kernels")
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
        kernels = dispatch.kernels("resample_kernels")
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
