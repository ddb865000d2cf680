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
    sh,
    sw,
    dh,
    dw,
    scale_h,
    scale_w,
    t,
    s_nh,
    s_nw,
    d_nh,
    d_nw,
    row0,
    col0,
    whole_h,
    whole_w,
    s_row,
    s_col,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token of `dst`, bilinear from `src`; both are maps cut into nh x nw even windows, tokens in window order.

    Sizes: src (sh, sw) per frame at (s_row, s_col) of the map (whole_h, whole_w), dst (dh, dw) per frame at
    (row0, col0) of the resized map.
    """
    token = tl.program_id(0).to(tl.int64)
    # Position of this token in dst: batch, frame, row, column.
    wh, ww = dh // d_nh, dw // d_nw
    inside = token % (t * wh * ww)
    window = token // (t * wh * ww)
    frame = inside // (wh * ww)
    row = row0 + (window // d_nw) % d_nh * wh + inside % (wh * ww) // ww
    column = col0 + window % d_nw * ww + inside % ww
    batch = window // (d_nh * d_nw)
    y = tl.maximum((row.to(tl.float32) + 0.5) * scale_h - 0.5, 0.0)
    x = tl.maximum((column.to(tl.float32) + 0.5) * scale_w - 0.5, 0.0)
    y0, x0 = tl.minimum(y.to(tl.int64), whole_h - 1), tl.minimum(x.to(tl.int64), whole_w - 1)
    y1, x1 = tl.minimum(y0 + 1, whole_h - 1), tl.minimum(x0 + 1, whole_w - 1)
    fy, fx = y - y0.to(tl.float32), x - x0.to(tl.float32)
    # In src. A neighbour with a rounding error for a weight may be outside of it.
    y0, y1 = tl.maximum(tl.minimum(y0 - s_row, sh - 1), 0), tl.maximum(tl.minimum(y1 - s_row, sh - 1), 0)
    x0, x1 = tl.maximum(tl.minimum(x0 - s_col, sw - 1), 0), tl.maximum(tl.minimum(x1 - s_col, sw - 1), 0)
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    vh, vw = sh // s_nh, sw // s_nw
    a = _load_token(src, batch, frame, y0, x0, t, vh, vw, s_nh, s_nw, channel, mask, C)
    if fx > 0:
        a += fx * (_load_token(src, batch, frame, y0, x1, t, vh, vw, s_nh, s_nw, channel, mask, C) - a)
    if fy > 0:
        b = _load_token(src, batch, frame, y1, x0, t, vh, vw, s_nh, s_nw, channel, mask, C)
        if fx > 0:
            b += fx * (_load_token(src, batch, frame, y1, x1, t, vh, vw, s_nh, s_nw, channel, mask, C) - b)
        a += fy * (b - a)
    tl.store(dst + token * C + channel, a.to(dst.dtype.element_ty), mask)


@triton.jit
def _load_token(src, batch, frame, row, column, t, wh, ww, nh, nw, channel, mask, C: tl.constexpr):
    window = (batch * nh + row // wh) * nw + column // ww
    token = (window * t + frame) * (wh * ww) + row % wh * ww + column % ww
    return tl.load(src + token * C + channel, mask, other=0.0).to(tl.float32)


def resample(
    x: Tensor, source: Layout, target: Layout, size: tuple[int, int], whole: tuple[int, int] | None = None
) -> Tensor:
    """Bilinear from `source` to `size` (h, w), of which `target` is a region: (n, ..., c), tokens of one window in each
    of the n -> (n', tokens', c).

    whole: size of the map of which `source` is a region that holds all that `target` reads; None: source is all of it.
    """
    whole = whole or (source.h, source.w)
    batch, c = x.shape[0] // (source.nh * source.nw), x.shape[-1]
    windows = batch * target.nh * target.nw
    out = x.new_empty(windows, target.t * target.h * target.w // (target.nh * target.nw), c)
    _resample_kernel[(windows * out.shape[1],)](
        x, out, source.h, source.w, target.h, target.w, whole[0] / size[0], whole[1] / size[1], source.t,
        source.nh, source.nw, target.nh, target.nw, target.row, target.column, *whole, source.row, source.column,
        C=c, BLOCK=power_of_2(c),
    )  # fmt: skip
    return out


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where the kernel does not run on this device or gives other numbers than a plain rearrangement."""
    c = 24
    x = torch.randn(2, 3, 4, 6, c, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    windows = resample(x.flatten(1, 3), Layout(3, 4, 6), Layout(3, 4, 6, 2, 3), (4, 6))
    expected = x.view(2, 3, 2, 2, 3, 2, c).permute(0, 2, 4, 1, 3, 5, 6)
    check_equal("resample", windows.view(2, 2, 3, 3, 2, 2, c), expected)
