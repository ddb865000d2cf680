"""T3-Video's attention rule (arXiv 2512.13492): the mean of attention in windows of neighbours and of strided tokens.

It has no weights of its own; models are trained for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from ..grid import TokenGrid, window_partition, window_unpartition, window_view
from ..sizes import VideoSize
from .engine import Engine
from .layer import Projections, attend

Windows = tuple[int, int, int]


@dataclass(frozen=True)
class Published:
    """What one of the published models was trained with: block i has the window counts (nt, nh, nw) number i mod 5.

    grid: the only published size. pixels: of one token, per axis.
    """

    grid: TokenGrid
    windows: tuple[Windows, ...]
    pixels: int

    def windows_of(self, block_index: int, grid: TokenGrid) -> Windows:
        """The counts for a block on any grid; on the published one the published counts.

        Elsewhere (experimental) they are the divisors whose windows come nearest to the published ones in tokens and
        shape; windows of single whole frames stay that, and windows over all frames too. Raises ValueError where no
        divisors come near.
        """
        windows = self._nearest(block_index, grid)
        if windows is None:
            good = next(other for other in self._neighbours(grid) if self._fits(other))
            raise ValueError(
                f"The t3 rule cuts videos into equal windows, and {self.size(grid)} (grid {grid}) have too few"
                f" divisors for that. The nearest size that does: {self.size(good)}."
            )
        return windows

    def table(self, grid: TokenGrid) -> list[Windows]:
        """The counts of all blocks, which repeat from then on. Raises ValueError as `windows_of`."""
        return [self.windows_of(index, grid) for index in range(len(self.windows))]

    def wanted(self, block_index: int, grid: TokenGrid) -> TokenGrid:
        """The extent of the published windows of a block, no larger than the grid; over all frames if it was so."""
        published = self.windows[block_index % len(self.windows)]
        t, h, w = map(min, window_grid(self.grid, published), grid)
        return TokenGrid(grid.t if published[0] == 1 else t, h, w)

    def size(self, grid: TokenGrid) -> VideoSize:
        """The video that this is the token grid of; Wan makes one latent frame of four, but for the first."""
        return VideoSize(grid.w * self.pixels, grid.h * self.pixels, 4 * grid.t - 3)

    def _fits(self, grid: TokenGrid) -> bool:
        return all(self._nearest(index, grid) for index in range(len(self.windows)))

    def _neighbours(self, grid: TokenGrid) -> list[TokenGrid]:
        """Nearest first; other numbers of frames, which a large prime asks for, last."""
        near = product(*([n for n in range(length - 8, length + 9) if n > 0] for length in grid))

        def distance(other: tuple[int, int, int]) -> tuple[int, int]:
            frames, *sides = (abs(a - b) for a, b in zip(other, grid, strict=True))
            return frames, sum(sides)

        return [TokenGrid(*other) for other in sorted(near, key=distance)]

    def _nearest(self, block_index: int, grid: TokenGrid) -> Windows | None:
        published = self.windows[block_index % len(self.windows)]
        if published == (self.grid.t, 1, 1):
            return grid.t, 1, 1
        wanted = self.wanted(block_index, grid)
        best = min(product(*map(divisors, grid)), key=lambda windows: _distance(window_grid(grid, windows), wanted))
        extent = window_grid(grid, best)
        near = all(1 / 4 <= a / b <= 4 for a, b in zip(extent[1:], wanted[1:], strict=True))
        return best if near and 1 / 2 <= extent.tokens / wanted.tokens <= 2 else None


PUBLISHED_1_3B = Published(
    TokenGrid(21, 136, 240), ((21, 1, 1), (1, 17, 30), (1, 8, 40), (3, 17, 8), (7, 8, 6)), pixels=16
)
PUBLISHED_5B = Published(
    TokenGrid(21, 68, 120), ((21, 1, 1), (1, 17, 20), (1, 17, 6), (3, 4, 15), (7, 4, 8)), pixels=32
)


@lru_cache(maxsize=1024)
def divisors(length: int) -> list[int]:
    return [n for n in range(1, length + 1) if length % n == 0]


def window_grid(grid: TokenGrid, windows: Windows) -> TokenGrid:
    """The extent of one window."""
    return TokenGrid(*(length // n for length, n in zip(grid, windows, strict=True)))


def _distance(window: TokenGrid, wanted: TokenGrid) -> float:
    """How far a window is from the wanted one: its cost first, then its shape."""
    shape = sum(abs(math.log(a / b)) for a, b in zip(window, wanted, strict=True))
    return abs(math.log(window.tokens / wanted.tokens)) + 0.25 * shape


def t3_attention(attn: Projections, x: Tensor, grid: TokenGrid, windows: Windows, engine: Engine) -> Tensor:
    """The layer: x (b, s, c) -> (b, s, c), out = W_o((close + remote) / 2).

    close: windows of neighbours. remote: windows of every nt-th, nh-th and nw-th token. Where an axis is cut into
    single tokens or not at all, both cuts are the same; where that holds for all axes they are computed once.
    """
    if x.shape[1] != grid.tokens:
        raise ValueError(f"Token grid must match the sequence, got grid={tuple(grid)}, tokens={x.shape[1]}.")
    x, extent = x.unflatten(1, grid), window_grid(grid, windows)
    y = window_unpartition(attend(attn, window_partition(x, windows), extent, engine), windows, extent)
    if not coincide(grid, windows):
        if torch.is_grad_enabled():
            y = y.clone()  # it may be what attention itself keeps for its backward pass
        strided = window_view(y, windows, strided=True)
        strided.add_(_remote(attn, x, windows, extent, engine).view_as(strided)).mul_(0.5)
    return attn.o(y.flatten(1, 3))


def _remote(attn: Projections, x: Tensor, windows: Windows, extent: TokenGrid, engine: Engine) -> Tensor:
    x = window_partition(x, windows, strided=True)  # a copy, unless close and remote coincide
    return attend(attn, x, extent, engine, stride=windows, overwrite=True)


def coincide(grid: TokenGrid, windows: Windows) -> bool:
    """Whether windows of neighbours and strided ones hold the same tokens."""
    return all(n in (1, length) for n, length in zip(windows, grid, strict=True))
