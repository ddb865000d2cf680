"""T3-Video's attention (arXiv 2512.13492): the mean of attention in windows of neighbours and of strided tokens.

It has no weights of its own; models are trained for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..grid import TokenGrid, window_partition, window_unpartition, window_view
from .engine import Engine
from .layer import Projections, attend, check_grid

Windows = tuple[int, int, int]
"""Window counts (nt, nh, nw)."""


def t3_attention(attn: Projections, x: Tensor, grid: TokenGrid, windows: Windows, engine: Engine) -> Tensor:
    """The layer: x (b, s, c) -> (b, s, c), out = W_o((close + remote) / 2).

    close: windows of neighbouring tokens. remote: strided windows, of every nt-th, nh-th and nw-th token. Where both
    cuts coincide they are computed once. Raises ValueError where grid and sequence do not match.
    """
    check_grid(x, grid)
    engine = engine.for_layer(x)
    x, extent = x.unflatten(1, grid), window_grid(grid, windows)
    y = window_unpartition(attend(attn, window_partition(x, windows), extent, engine), windows, extent)
    if not cuts_coincide(grid, windows):
        if torch.is_grad_enabled():
            y = y.clone()  # attention may keep y for its backward pass
        strided = window_view(y, windows, strided=True)
        strided.add_(_strided_attention(attn, x, windows, extent, engine).view_as(strided)).mul_(0.5)
    return attn.o(y.flatten(1, 3))


def _strided_attention(attn: Projections, x: Tensor, windows: Windows, extent: TokenGrid, engine: Engine) -> Tensor:
    x = window_partition(x, windows, strided=True)  # a copy, because the cuts do not coincide
    return attend(attn, x, extent, engine, stride=windows, overwrite=True)


def window_grid(grid: TokenGrid, windows: Windows) -> TokenGrid:
    """The extent of one window."""
    return TokenGrid(*(length // n for length, n in zip(grid, windows, strict=True)))


def cuts_coincide(grid: TokenGrid, windows: Windows) -> bool:
    """Whether windows of neighbours and strided windows hold the same tokens: every axis is cut into single tokens or
    not at all.
    """
    return all(n in (1, length) for n, length in zip(windows, grid, strict=True))
