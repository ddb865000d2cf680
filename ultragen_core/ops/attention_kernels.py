"""Triton kernels for what a layer does between its matrix products; resample.py and rope.py say what they compute.

Maps are contiguous and channel-last, arithmetic is float32 whatever the dtype. engine.kernels_for says where they run;
the plain functions run everywhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..grid import Region


class Layout(NamedTuple):
    """A map whose tokens lie in window order: t frames of h x w tokens, cut into nh x nw even windows; (1, 1) is a map.

    `row` and `column` place it inside a larger map of which it is a region.
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
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token of `dst`, bilinear from `src`; both are maps cut into nh x nw even windows, tokens in window order.

    Sizes: src (sh, sw) per frame, dst (dh, dw) per frame at (row0, col0) of the resized map.
    """
    token = tl.program_id(0).to(tl.int64)
    # Where this token of dst lies: batch, frame, row, column.
    wh, ww = dh // d_nh, dw // d_nw
    inside = token % (t * wh * ww)
    window = token // (t * wh * ww)
    frame = inside // (wh * ww)
    row = row0 + (window // d_nw) % d_nh * wh + inside % (wh * ww) // ww
    column = col0 + window % d_nw * ww + inside % ww
    batch = window // (d_nh * d_nw)
    y = tl.maximum((row.to(tl.float32) + 0.5) * scale_h - 0.5, 0.0)
    x = tl.maximum((column.to(tl.float32) + 0.5) * scale_w - 0.5, 0.0)
    y0, x0 = tl.minimum(y.to(tl.int64), sh - 1), tl.minimum(x.to(tl.int64), sw - 1)
    y1, x1 = tl.minimum(y0 + 1, sh - 1), tl.minimum(x0 + 1, sw - 1)
    fy, fx = y - y0.to(tl.float32), x - x0.to(tl.float32)
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


@triton.jit
def _norm_rope_kernel(x, weight, table, length, eps, C: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """RMS norm over all channels of one token, then RoPE of its pairs of channels, in place."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    mask = pair < C // 2
    both = pair[:, None] * 2 + tl.arange(0, 2)[None, :]
    value = tl.load(x + token * C + both, mask[:, None], other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value) / C + eps)
    value = value * scale * tl.load(weight + both, mask[:, None], other=0.0).to(tl.float32)
    even, odd = tl.split(value)
    angle = (token % length * HALF + pair % HALF)[:, None] * 2 + tl.arange(0, 2)[None, :]
    c, s = tl.split(tl.load(table + angle, mask[:, None], other=0.0))
    rotated = tl.join(even * c - odd * s, even * s + odd * c)
    tl.store(x + token * C + both, rotated.to(x.dtype.element_ty), mask[:, None])


@triton.jit
def _compress_kernel(x, weight, bias, out, h, w, oh, ow, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """One token of the compressed map: a weighted sum of K x K tokens."""
    token = tl.program_id(0).to(tl.int64)
    frame, row, column = token // (oh * ow), token % (oh * ow) // ow, token % ow
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    total = tl.load(bias + channel, mask, other=0.0).to(tl.float32)
    for tap in tl.static_range(K * K):
        source = (frame * h + row * K + tap // K) * w + column * K + tap % K
        value = tl.load(x + source * C + channel, mask, other=0.0).to(tl.float32)
        total += value * tl.load(weight + tap * C + channel, mask, other=0.0).to(tl.float32)
    tl.store(out + token * C + channel, total.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["first", "height", "start", "rows"])  # one kernel for all strips
def _refine_blend_kernel(
    coarse,
    weight,
    bias,
    y,
    gate,
    gate_stride,
    h,
    w,
    first,
    height,
    start,
    rows,
    T: tl.constexpr,
    C: tl.constexpr,
    WB: tl.constexpr,
    CB: tl.constexpr,
):
    """y = lerp(3x3x3 depthwise convolution of coarse, y, gate) for a stretch of one row, all frames, some channels.

    coarse holds `height` rows of the map from row `first` on; what is computed is `rows` rows from row `start` on.
    Frames go by once: each adds to the sums of its own frame and of both neighbours.
    """
    stretches = tl.cdiv(w, WB)
    row_of_batch = tl.program_id(0)
    batch = (row_of_batch // (stretches * rows)).to(tl.int64)
    row = start + row_of_batch // stretches % rows
    column = row_of_batch % stretches * WB + tl.arange(0, WB)
    channel = tl.program_id(1) * CB + tl.arange(0, CB)
    keep = channel < C
    b = tl.load(bias + channel, keep, other=0.0).to(tl.float32)[None, :]
    g = tl.load(gate + batch * gate_stride + channel, keep, other=0.0).to(tl.float32)[None, :]
    before = tl.zeros((WB, CB), tl.float32)
    now = tl.zeros((WB, CB), tl.float32)
    place = column[:, None] * C + channel[None, :]
    inside = (column < w)[:, None] & keep[None, :]
    for frame in range(T + 1):
        after = tl.zeros((WB, CB), tl.float32)
        if frame < T:
            for tap in tl.static_range(9):
                r, cols = row + tap // 3 - 1, column + tap % 3 - 1
                valid = (r >= 0) & (r < h) & (cols >= 0) & (cols < w)
                line = ((batch * T + frame) * height + r - first) * w
                at = (line + cols)[:, None] * C + channel[None, :]
                value = tl.load(coarse + at, valid[:, None] & keep[None, :], other=0.0).to(tl.float32)
                taps = weight + tap * C + channel
                before += value * tl.load(taps + 18 * C, keep, other=0.0).to(tl.float32)[None, :]
                now += value * tl.load(taps + 9 * C, keep, other=0.0).to(tl.float32)[None, :]
                after += value * tl.load(taps, keep, other=0.0).to(tl.float32)[None, :]
        if frame > 0:
            at = ((batch * T + frame - 1) * h + row) * w * C + place
            old = tl.load(y + at, inside, other=0.0).to(tl.float32)
            conv = before + b
            tl.store(y + at, (conv + g * (old - conv)).to(y.dtype.element_ty), inside)
        before, now = now, after


def resample(x: Tensor, source: Layout, target: Layout, size: tuple[int, int]) -> Tensor:
    """Bilinear from `source` to `size` (h, w), of which `target` is a region: (n, tokens, c) -> (n', tokens', c)."""
    batch, c = x.shape[0] // (source.nh * source.nw), x.shape[-1]
    windows = batch * target.nh * target.nw
    out = x.new_empty(windows, target.t * target.h * target.w // (target.nh * target.nw), c)
    _resample_kernel[(windows * out.shape[1],)](
        x, out, source.h, source.w, target.h, target.w, source.h / size[0], source.w / size[1], source.t,
        source.nh, source.nw, target.nh, target.nw, target.row, target.column,
        C=c, BLOCK=triton.next_power_of_2(c),
    )  # fmt: skip
    return out


def norm_rope_(x: Tensor, weight: Tensor, eps: float, table: Tensor) -> Tensor:
    """RMS norm over the channels, then RoPE, in place: x (n, tokens, c), table (tokens, head_dim / 2, 2)."""
    n, length, c = x.shape
    block = triton.next_power_of_2(c // 2)
    _norm_rope_kernel[(n * length,)](
        x, weight, table.contiguous(), length, eps, C=c, HALF=table.shape[1], BLOCK=block
    )  # fmt: skip
    return x


def compress(x: Tensor, weight: Tensor, bias: Tensor, ratio: int) -> Tensor:
    """Depthwise convolution, weight (c, 1, ratio, ratio): (b, t, h, w, c) -> (b, t, h // ratio, w // ratio, c)."""
    b, t, h, w, c = x.shape
    out = x.new_empty(b, t, h // ratio, w // ratio, c)
    _compress_kernel[(out.numel() // c,)](
        x, weight.flatten(1).t().contiguous(), bias, out, h, w, h // ratio, w // ratio,
        K=ratio, C=c, BLOCK=triton.next_power_of_2(c),
    )  # fmt: skip
    return out


def refine_blend_(
    coarse: Tensor, weight: Tensor, bias: Tensor, y: Tensor, gate: Tensor, first: int, rows: tuple[int, int]
) -> Tensor:
    """y = lerp(conv(coarse), y, gate), in place: y (b, t, h, w, c), weight (c, 1, 3, 3, 3), gate (b or 1, 1, c).

    rows: (start, length) of those that are computed. coarse: at y's resolution, the rows from `first` on that they and
    their neighbours take.
    """
    b, t, h, w, c = y.shape
    stretch, channels = 16, 64
    gate_stride = gate.stride(0) if gate.shape[0] > 1 else 0
    _refine_blend_kernel[(b * rows[1] * triton.cdiv(w, stretch), triton.cdiv(c, channels))](
        coarse, weight.flatten(1).t().contiguous(), bias, y, gate, gate_stride, h, w, first, coarse.shape[2], *rows,
        T=t, C=c, WB=stretch, CB=channels,
    )  # fmt: skip
    return y


def check(device: torch.device) -> None:
    """Raise where one of the kernels does not run on this device or does not give the right numbers, in bfloat16."""
    c, generator = 24, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    x = random(2, 3, 4, 6, c)
    windows = resample(x.flatten(1, 3), Layout(3, 4, 6), Layout(3, 4, 6, 2, 3), (4, 6))
    _same("resample", windows.view(2, 2, 3, 3, 2, 2, c), x.view(2, 3, 2, 2, 3, 2, c).permute(0, 2, 4, 1, 3, 5, 6))
    weight, bias, gate = random(c, 1, 2, 2), random(c), random(2, 1, c).sigmoid()
    channel_first = x.flatten(0, 1).permute(0, 3, 1, 2).float()
    expected = F.conv2d(channel_first, weight.float(), bias.float(), stride=2, groups=c).permute(0, 2, 3, 1)
    _same("compress", compress(x, weight, bias, 2).flatten(0, 1), expected)
    weight, y = random(c, 1, 3, 3, 3), random(*x.shape)
    refined = F.conv3d(x.permute(0, 4, 1, 2, 3).float(), weight.float(), bias.float(), padding=1, groups=c)
    expected = torch.lerp(refined.permute(0, 2, 3, 4, 1), y.float(), gate[:, :, None, None].float())
    for first, last, rows in ((0, 3, (0, 2)), (1, 4, (2, 2))):
        refine_blend_(x[:, :, first:last].contiguous(), weight, bias, y, gate, first, rows)
    _same("refine_blend", y, expected)
    angles = torch.rand(72, 6, generator=generator).to(device)
    x = x.flatten(1, 3).float()
    normed = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * bias.float()
    pairs = torch.view_as_complex(normed.view(2, 72, 2, 6, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    table = torch.stack((angles.cos(), angles.sin()), -1)
    _same("norm_rope", norm_rope_(x.bfloat16(), bias, 1e-6, table), torch.view_as_real(pairs).flatten(2))


def _same(name: str, a: Tensor, b: Tensor) -> None:
    error = ((a.float() - b.float()).norm() / b.float().norm()).item()
    if not error < 1e-2:
        raise RuntimeError(f"Triton's {name} is off by {error:.1e}")
