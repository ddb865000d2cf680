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
    """y = lerp(3x3x3 depthwise convolution of coarse, y, gate) for a stretch of two rows, all frames, some channels.

    Computes `rows` rows from row `start`; coarse holds `height` rows of the map, starting at row `first`. Each frame is
    read once and added to the sums of its own and both neighbouring frames. Two rows share half of what they read.
    """
    stretches, pairs = tl.cdiv(w, WB), tl.cdiv(rows, 2)
    pair_of_batch = tl.program_id(0)
    batch = (pair_of_batch // (stretches * pairs)).to(tl.int64)
    row = start + 2 * (pair_of_batch // stretches % pairs)
    column = pair_of_batch % stretches * WB + tl.arange(0, WB)
    channel = tl.program_id(1) * CB + tl.arange(0, CB)
    keep = channel < C
    b = tl.load(bias + channel, keep, other=0.0).to(tl.float32)[None, :]
    g = tl.load(gate + batch * gate_stride + channel, keep, other=0.0).to(tl.float32)[None, :]
    zero = tl.zeros((WB, CB), tl.float32)
    before, now = zero, zero
    before2, now2 = zero, zero
    place = column[:, None] * C + channel[None, :]
    inside = (column < w)[:, None] & keep[None, :]
    inside2 = inside & (row + 1 < start + rows)
    for frame in range(T + 1):
        after, after2 = zero, zero
        if frame < T:
            for tap in tl.static_range(12):
                r, cols = row + tap // 3 - 1, column + tap % 3 - 1
                valid = (r >= first) & (r < first + height) & (cols >= 0) & (cols < w)
                line = ((batch * T + frame) * height + r - first) * w
                at = (line + cols)[:, None] * C + channel[None, :]
                value = tl.load(coarse + at, valid[:, None] & keep[None, :], other=0.0).to(tl.float32)
                if tap < 9:
                    taps = weight + tap * C + channel
                    before += value * tl.load(taps + 18 * C, keep, other=0.0).to(tl.float32)[None, :]
                    now += value * tl.load(taps + 9 * C, keep, other=0.0).to(tl.float32)[None, :]
                    after += value * tl.load(taps, keep, other=0.0).to(tl.float32)[None, :]
                if tap >= 3:
                    taps = weight + (tap - 3) * C + channel
                    before2 += value * tl.load(taps + 18 * C, keep, other=0.0).to(tl.float32)[None, :]
                    now2 += value * tl.load(taps + 9 * C, keep, other=0.0).to(tl.float32)[None, :]
                    after2 += value * tl.load(taps, keep, other=0.0).to(tl.float32)[None, :]
        if frame > 0:
            at = ((batch * T + frame - 1) * h + row) * w * C + place
            _blend(y + at, before + b, g, inside)
            _blend(y + at + w * C, before2 + b, g, inside2)
        before, now = now, after
        before2, now2 = now2, after2


@triton.jit
def _blend(y, refined, gate, mask):
    old = tl.load(y, mask, other=0.0).to(tl.float32)
    tl.store(y, (refined + gate * (old - refined)).to(y.dtype.element_ty), mask)


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
    stretch, channels = 8, 64
    gate_stride = gate.stride(0) if gate.shape[0] > 1 else 0
    _refine_blend_kernel[(b * -(-rows[1] // 2) * -(-w // stretch), -(-c // channels))](
        coarse, taps, bias, y, gate, gate_stride, h, w, first, coarse.shape[2], *rows,
        T=t, C=c, WB=stretch, CB=channels,
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
