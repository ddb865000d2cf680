"""Triton form of resample.py: bilinear resizing from and into window order.

Maps are contiguous and channel-last; arithmetic is float32 whatever the dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid import Region
from .dispatch import check_equal, power_of_2

CHANNELS, WARPS = 512, 2  # of a token at a time: 8 channels a thread, one load of 16 bytes


class Layout(NamedTuple):
    """The layout of a map whose tokens are stored window by window: t frames of h x w tokens, cut into nh x nw equal
    windows. With nh = nw = 1 it is a plain map.

    row, column: its position in the larger map of which it is a region.
    """

    t: int
    h: int
    w: int
    nh: int = 1
    nw: int = 1
    row: int = 0
    column: int = 0

    @classmethod
    def of(cls, t: int, region: Region) -> Layout:
        rows, columns, windows = region
        return cls(t, rows.stop - rows.start, columns.stop - columns.start, *windows[1:], rows.start, columns.start)


@triton.jit
def _resample_kernel(
    src,
    dst,
    scale_h,
    scale_w,
    t,
    wh,
    ww,
    d_nh,
    d_nw,
    row0,
    col0,
    sh,
    sw,
    vh,
    vw,
    s_nh,
    s_nw,
    whole_h,
    whole_w,
    s_row,
    s_col,
    C: tl.constexpr,
    CB: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One token of `dst`, bilinear from `src`; both are maps cut into nh x nw even windows, tokens in window order.

    Sizes: src (sh, sw) per frame at (s_row, s_col) of the map (whole_h, whole_w), in windows of (vh, vw); dst's windows
    are (wh, ww) per frame, the first at (row0, col0) of the resized map. ROWS, COLUMNS: whether their number differs
    between the maps.
    """
    line, inner = tl.program_id(0), tl.program_id(1)  # a row of a frame of a window; a token of it
    token = line.to(tl.int64) * ww + inner
    inner_row, frame, window = line % wh, line // wh % t, line // wh // t
    batch = window // d_nw // d_nh
    row = row0 + window // d_nw % d_nh * wh + inner_row
    column = col0 + window % d_nw * ww + inner
    y = tl.maximum((row.to(tl.float32) + 0.5) * scale_h - 0.5, 0.0)
    x = tl.maximum((column.to(tl.float32) + 0.5) * scale_w - 0.5, 0.0)
    y0, x0 = tl.minimum(y.to(tl.int32), whole_h - 1), tl.minimum(x.to(tl.int32), whole_w - 1)
    y1, x1 = tl.minimum(y0 + 1, whole_h - 1), tl.minimum(x0 + 1, whole_w - 1)
    fy, fx = y - y0.to(tl.float32), x - x0.to(tl.float32)
    # In src. A neighbour with a rounding error for a weight may be outside of it.
    y0, y1 = tl.maximum(tl.minimum(y0 - s_row, sh - 1), 0), tl.maximum(tl.minimum(y1 - s_row, sh - 1), 0)
    x0, x1 = tl.maximum(tl.minimum(x0 - s_col, sw - 1), 0), tl.maximum(tl.minimum(x1 - s_col, sw - 1), 0)
    size = t * vh * vw  # tokens of a window
    origin = batch * s_nh * s_nw * size + frame * vh * vw
    above, below = origin + _offset(y0, vh, s_nw * size, vw), origin + _offset(y1, vh, s_nw * size, vw)
    left, right = _offset(x0, vw, size, 1), _offset(x1, vw, size, 1)
    for start in tl.static_range(0, C, CB):
        channel = start + tl.arange(0, CB)
        mask = channel < C
        a = _load_token(src, above + left, channel, mask, C)
        if COLUMNS:
            a += fx * (_load_token(src, above + right, channel, mask, C) - a)
        if ROWS:
            b = _load_token(src, below + left, channel, mask, C)
            if COLUMNS:
                b += fx * (_load_token(src, below + right, channel, mask, C) - b)
            a += fy * (b - a)
        tl.store(dst + token * C + channel, a.to(dst.dtype.element_ty), mask)


@triton.jit
def _offset(position, length, window, token):
    """Tokens before a row or column: of the whole windows before it, and of its own window."""
    return position // length * window + position % length * token


@triton.jit
def _load_token(src, token, channel, mask, C: tl.constexpr):
    return tl.load(src + token.to(tl.int64) * C + channel, mask, other=0.0).to(tl.float32)


def resample(
    x: Tensor, source: Layout, target: Layout, size: tuple[int, int], whole: tuple[int, int] | None = None
) -> Tensor:
    """Bilinear from `source` to `size` (h, w), of which `target` is a region: (n, ..., c), tokens of one window in each
    of the n -> (n', tokens', c).

    whole: size of the map of which `source` is a region that holds all that `target` reads; None: source is all of it.
    """
    whole = whole or (source.h, source.w)
    batch, c = x.shape[0] // (source.nh * source.nw), x.shape[-1]
    windows, wh, ww = batch * target.nh * target.nw, target.h // target.nh, target.w // target.nw
    out = x.new_empty(windows, target.t * wh * ww, c)
    scale_h, scale_w = whole[0] / size[0], whole[1] / size[1]
    _resample_kernel[(windows * target.t * wh, ww)](
        x, out, scale_h, scale_w, target.t, wh, ww, target.nh, target.nw, target.row, target.column,
        source.h, source.w, source.h // source.nh, source.w // source.nw, source.nh, source.nw,
        *whole, source.row, source.column,
        C=c, CB=min(CHANNELS, power_of_2(c)), ROWS=scale_h != 1, COLUMNS=scale_w != 1, num_warps=WARPS,
    )  # fmt: skip
    return out


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where the kernel does not run on this device or gives other numbers than a plain rearrangement."""
    c = 24
    x = torch.randn(2, 3, 4, 6, c, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    windows = resample(x.flatten(1, 3), Layout(3, 4, 6), Layout(3, 4, 6, 2, 3), (4, 6))
    expected = x.view(2, 3, 2, 2, 3, 2, c).permute(0, 2, 4, 1, 3, 5, 6)
    check_equal("resample", windows.view(2, 2, 3, 3, 2, 2, c), expected)
