"""The token grid of a video, and how it is cut into windows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, groupby, pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .rectangle import Rectangle


class TokenGrid(NamedTuple):
    """Numbers of tokens of a video per axis; Wan makes one token of 2x2 latent pixels of one latent frame."""

    t: int
    h: int
    w: int

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w

    def part(self, rectangle: Rectangle) -> TokenGrid:
        """The grid of a rectangle of every frame."""
        return TokenGrid(self.t, *rectangle.size)

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


class Region(NamedTuple):
    """A rectangle of every frame that divides evenly into windows of all frames.

    rows, columns: its place in the grid. windows: counts (1, nh, nw).
    """

    rows: slice
    columns: slice
    windows: tuple[int, int, int]

    def window_grid(self, t: int) -> TokenGrid:
        return TokenGrid(t, *((s.stop - s.start) // n for s, n in zip(self[:2], self.windows[1:], strict=True)))


def nearest_multiple(length: int, num_windows: int) -> int:
    """The multiple of `num_windows` nearest to `length`, the lower one in a tie, as the published code resizes an axis.

    Where that would be 0 (an axis shorter than half the windows, on which the published code fails) the axis keeps its
    length.
    """
    lower = length // num_windows * num_windows
    upper = lower + num_windows
    return (lower if length - lower <= upper - length else upper) or length


def window_borders(length: int, num_windows: int, shifted: bool = False) -> list[int]:
    """Cut an axis into `num_windows` windows whose sizes differ by at most one, larger ones first. Returns the start of
    every window, and `length`.

    A short axis gets fewer windows, never an empty one. shifted: move every border by half a window, so that the outer
    windows are halves. These are Swin's shifted windows; its cyclic roll and mask only serve to batch them.
    """
    num_windows = min(num_windows, length)
    small, extra = divmod(length, num_windows)
    borders = [i * small + min(i, extra) for i in range(num_windows + 1)]
    if shifted:
        borders = sorted({0, *((a + b) // 2 for a, b in pairwise(borders)), length})
    return borders


def cut_axis(length: int, num_windows: int, shifted: bool = False) -> list[tuple[slice, int]]:
    """The windows between `window_borders`, as runs of equal windows: (slice of the axis, number of windows)."""
    if length % num_windows == 0 and not shifted:
        return [(slice(0, length), num_windows)]
    borders = window_borders(length, num_windows, shifted)
    runs = [list(run) for _, run in groupby(pairwise(borders), key=lambda window: window[1] - window[0])]
    return [(slice(run[0][0], run[-1][1]), len(run)) for run in runs]


def cut_grid(grid: TokenGrid, num_windows: int, shifted: bool = False) -> list[Region]:
    """Cut every frame of the grid into windows: one region where both axes divide, up to four where they do not, more
    for shifted windows.
    """
    return [
        Region(rows, columns, (1, nh, nw))
        for rows, nh in cut_axis(grid.h, num_windows, shifted)
        for columns, nw in cut_axis(grid.w, num_windows, shifted)
    ]


def window_view(x: Tensor, windows: tuple[int, int, int], strided: bool = False) -> Tensor:
    """A view (b, nt, nh, nw, t, h, w, c) of a map (b, nt * t, nh * h, nw * w, c), windows (nt, nh, nw) per axis.

    A window is a block of neighbouring tokens; strided: every nt-th, nh-th and nw-th token.
    """
    pairs = [(n, length // n) for length, n in zip(x.shape[1:4], windows, strict=True)]
    if strided:
        sizes, order = chain(*(pair[::-1] for pair in pairs)), (0, 2, 4, 6, 1, 3, 5, 7)
    else:
        sizes, order = chain(*pairs), (0, 1, 3, 5, 2, 4, 6, 7)
    return x.view(x.shape[0], *sizes, x.shape[4]).permute(order)


def window_partition(x: Tensor, windows: tuple[int, int, int], strided: bool = False) -> Tensor:
    """(b, t, h, w, c) -> (b * nt * nh * nw, tokens of a window, c)."""
    tokens = x.shape[1:4].numel() // prod(windows)
    return _move_as_int64(lambda y: window_view(y, windows, strided).reshape(-1, tokens, y.shape[-1]), x)


def window_unpartition(x: Tensor, windows: tuple[int, int, int], window_grid: TokenGrid) -> Tensor:
    """The exact inverse of `window_partition`; `window_grid` is the extent of one window.

    Strided windows go back through `window_view`.
    """
    grid = [n * length for n, length in zip(windows, window_grid, strict=True)]

    def move(y: Tensor) -> Tensor:
        split = y.view(-1, *windows, *window_grid, y.shape[-1])
        return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *grid, y.shape[-1])

    return _move_as_int64(move, x)


def _move_as_int64(move: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """move(x), with tokens viewed as int64, which PyTorch copies several times faster than 16-bit values.

    move: only reorders tokens.
    """
    if x.shape[-1] * x.element_size() % 8 or (torch.is_grad_enabled() and x.requires_grad):
        return move(x)
    return move(x.view(torch.int64)).view(x.dtype)
