"""Triton form of depthwise.py: compression, and refinement with blending.

Maps are contiguous and channel-last; arithmetic is float32 whatever the dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import check_equal, power_of_2

# Of a thread that refines: one more, and a multiprocessor holds three programs at a time instead of four.
REGISTERS = {} if torch.version.hip else {"maxnreg": 128}


@triton.jit
def _compress_kernel(x, weight, bias, out, h, w, oh, ow, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """One token of the compressed map: a weighted sum of K x K tokens."""
    token = tl.program_id(0).to(tl.int64)
    frame, row, column = token // (oh * ow), token % (oh * ow) // ow, token % ow
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    total = _load(bias + channel, mask)
    for tap in tl.static_range(K * K):
        source = (frame * h + row * K + tap // K) * w + column * K + tap % K
        total += _load(x + source * C + channel, mask) * _load(weight + tap * C + channel, mask)
    tl.store(out + token * C + channel, total.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["first", "height", "start", "rows"])  # one kernel for all strips
def _refine_blend_kernel(
    coarse,
    taps,
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
    """y = lerp(3x3x3 depthwise convolution of coarse, y, gate) for a stretch of two rows, all frames, some channels.

    Computes `rows` rows from row `start`; coarse holds `height` rows of the map, starting at row `first`. Each frame is
    read once, and added to the sums of its own and both neighbouring frames. Two rows share half of what they read.

    What bounds it is waiting for memory. So the taps stay in registers, of which a thread with one token and two
    channels has enough, and the next frame is on its way while one is added.
    """
    stretches, pairs = tl.cdiv(w, WB), tl.cdiv(rows, 2)
    place = tl.program_id(0)
    batch = (place // (stretches * pairs)).to(tl.int64)
    row = start + 2 * (place // stretches % pairs)
    column = (place % stretches * WB + tl.arange(0, WB))[:, None]
    channel = (tl.program_id(1) * CB + tl.arange(0, CB))[None, :]
    keep = channel < C
    inside = (column < w) & keep
    left, right, inside2 = inside & (column > 0), (column + 1 < w) & keep, inside & (row + 1 < start + rows)
    g = _load(gate + batch * gate_stride + channel, keep)
    b = _load(bias + channel, keep) + tl.zeros((WB, CB), tl.float32)
    # Of the left, middle and right column: in each of three rows the taps for the frame after, its own, and before.
    l0, l1, l2, l3, l4, l5, l6, l7, l8 = _load_taps(taps + channel, keep, C)
    m0, m1, m2, m3, m4, m5, m6, m7, m8 = _load_taps(taps + C + channel, keep, C)
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = _load_taps(taps + 2 * C + channel, keep, C)
    line, top = w * C, row - first
    at = coarse + ((batch * T * height + top) * w + column) * C + channel
    out = y + ((batch * T * h - h + row) * w + column) * C + channel  # in the frame before
    before, now, before2, now2 = b, b, b, b  # sums of the frame before and of this one, in both rows
    la, lb, lc, ld = _load_column(at - C, left, top, height, line)
    ma, mb, mc, md = _load_column(at, inside, top, height, line)
    ra, rb, rc, rd = _load_column(at + C, right, top, height, line)
    for frame in range(T):
        complete = frame > 0
        old, old2 = tl.load(out, inside & complete), tl.load(out + line, inside2 & complete)
        at += height * line
        more = frame + 1 < T
        la_, lb_, lc_, ld_ = _load_column(at - C, left & more, top, height, line)
        ma_, mb_, mc_, md_ = _load_column(at, inside & more, top, height, line)
        ra_, rb_, rc_, rd_ = _load_column(at + C, right & more, top, height, line)
        before, now, after = _add(before, now, b, la, lb, lc, l0, l1, l2, l3, l4, l5, l6, l7, l8)
        before, now, after = _add(before, now, after, ma, mb, mc, m0, m1, m2, m3, m4, m5, m6, m7, m8)
        before, now, after = _add(before, now, after, ra, rb, rc, r0, r1, r2, r3, r4, r5, r6, r7, r8)
        before2, now2, after2 = _add(before2, now2, b, lb, lc, ld, l0, l1, l2, l3, l4, l5, l6, l7, l8)
        before2, now2, after2 = _add(before2, now2, after2, mb, mc, md, m0, m1, m2, m3, m4, m5, m6, m7, m8)
        before2, now2, after2 = _add(before2, now2, after2, rb, rc, rd, r0, r1, r2, r3, r4, r5, r6, r7, r8)
        _blend(out, old, before, g, inside & complete)
        _blend(out + line, old2, before2, g, inside2 & complete)
        before, now, before2, now2 = now, after, now2, after2
        la, lb, lc, ld, ma, mb, mc, md, ra, rb, rc, rd = la_, lb_, lc_, ld_, ma_, mb_, mc_, md_, ra_, rb_, rc_, rd_
        out += h * line
    _blend(out, tl.load(out, inside), before, g, inside)
    _blend(out + line, tl.load(out + line, inside2), before2, g, inside2)


@triton.jit
def _load_taps(at, keep, C: tl.constexpr):
    """A column of the taps, whose frames are 9 apart and rows 3: by row, from the first frame to the last."""
    return (
        _load(at, keep), _load(at + 9 * C, keep), _load(at + 18 * C, keep),
        _load(at + 3 * C, keep), _load(at + 12 * C, keep), _load(at + 21 * C, keep),
        _load(at + 6 * C, keep), _load(at + 15 * C, keep), _load(at + 24 * C, keep),
    )  # fmt: skip


@triton.jit
def _load(at, mask):
    return tl.load(at, mask, other=0.0).to(tl.float32)


@triton.jit
def _load_column(at, mask, row, height, line):
    """The four rows of coarse that rows `row` and `row` + 1 of y take; outside of the map they are zero."""
    return (
        tl.load(at - line, mask & (row > 0), other=0.0),
        tl.load(at, mask, other=0.0),
        tl.load(at + line, mask & (row + 1 < height), other=0.0),
        tl.load(at + 2 * line, mask & (row + 2 < height), other=0.0),
    )


@triton.jit
def _add(before, now, after, x0, x1, x2, a0, n0, b0, a1, n1, b1, a2, n2, b2):
    """Add three rows of a frame, each times its taps, to the sums of the frames before, now and after."""
    x0, x1, x2 = x0.to(tl.float32), x1.to(tl.float32), x2.to(tl.float32)
    before, now, after = before + x0 * b0, now + x0 * n0, after + x0 * a0
    before, now, after = before + x1 * b1, now + x1 * n1, after + x1 * a1
    return before + x2 * b2, now + x2 * n2, after + x2 * a2


@triton.jit
def _blend(y, old, refined, gate, mask):
    tl.store(y, (refined + gate * (old.to(tl.float32) - refined)).to(y.dtype.element_ty), mask)


def taps(weight: Tensor) -> Tensor:
    """The weight of a depthwise convolution (c, 1, ...) as the kernels read it: contiguous (taps, c)."""
    return weight.flatten(1).t().contiguous()


def compress(x: Tensor, weight: Tensor, bias: Tensor, ratio: int) -> Tensor:
    """Depthwise convolution, weight (c, 1, ratio, ratio): (b, t, h, w, c) -> (b, t, h // ratio, w // ratio, c)."""
    b, t, h, w, c = x.shape
    out = x.new_empty(b, t, h // ratio, w // ratio, c)
    _compress_kernel[(out.numel() // c,)](
        x, taps(weight), bias, out, h, w, h // ratio, w // ratio,
        K=ratio, C=c, BLOCK=power_of_2(c),
    )  # fmt: skip
    return out


def refine_blend_(
    coarse: Tensor, taps: Tensor, bias: Tensor, y: Tensor, gate: Tensor, first: int, rows: tuple[int, int]
) -> Tensor:
    """y = lerp(conv(coarse), y, gate), in place: y (b, t, h, w, c), taps (27, c), gate (b or 1, 1, c).

    rows: (start, length) of those that are computed. coarse: at y's resolution, the rows from `first` on that they and
    their neighbours take.
    """
    b, t, h, w, c = y.shape
    stretch, channels = 4, 64
    gate_stride = gate.stride(0) if gate.shape[0] > 1 else 0
    _refine_blend_kernel[(b * -(-rows[1] // 2) * -(-w // stretch), -(-c // channels))](
        coarse, taps, bias, y, gate, gate_stride, h, w, first, coarse.shape[2], *rows,
        T=t, C=c, WB=stretch, CB=channels, **REGISTERS,
    )  # fmt: skip
    return y


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where one of the kernels does not run on this device or gives other numbers than PyTorch's convolutions."""
    c, generator = 24, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, y, bias = random(2, 3, 4, 6, c), random(2, 3, 4, 6, c), random(c)
    weight = random(c, 1, 2, 2)
    channel_first = x.flatten(0, 1).permute(0, 3, 1, 2).float()
    expected = F.conv2d(channel_first, weight.float(), bias.float(), stride=2, groups=c).permute(0, 2, 3, 1)
    check_equal("compress", compress(x, weight, bias, 2).flatten(0, 1), expected)
    weight, gate = random(c, 1, 3, 3, 3), random(2, 1, c).sigmoid()
    refined = F.conv3d(x.permute(0, 4, 1, 2, 3).float(), weight.float(), bias.float(), padding=1, groups=c)
    expected = torch.lerp(refined.permute(0, 2, 3, 4, 1), y.float(), gate[:, :, None, None].float())
    for first, last, rows in ((0, 3, (0, 2)), (1, 4, (2, 2))):
        refine_blend_(x[:, :, first:last].contiguous(), taps(weight), bias, y, gate, first, rows)
    check_equal("refine_blend", y, expected)
