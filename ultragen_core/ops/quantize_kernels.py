"""Triton form of quantize.py.

Maps are contiguous and channel-last; arithmetic is float32 whatever the dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import check_equal, power_of_2

TOKENS, CHANNELS = 16, 128  # of a block of the statistics
SPAN = 1024  # tokens that one program of the statistics reads


@triton.jit
def _statistics_kernel(x, out, length, spans, C: tl.constexpr, SPAN: tl.constexpr, T: tl.constexpr, CB: tl.constexpr):
    """Sum, least and largest value of every channel of CB, over SPAN tokens of one item."""
    item, span = (tl.program_id(0) // spans).to(tl.int64), tl.program_id(0) % spans
    channel = tl.program_id(1) * CB + tl.arange(0, CB)
    inside = channel < C
    token = span * SPAN + tl.arange(0, T)[:, None]
    last = tl.minimum((span + 1) * SPAN, length) - 1
    at = x + item * length * C + channel[None, :]
    total = tl.zeros((T, CB), tl.float32)  # reduced once at the end: a reduction makes the warps wait for each other
    low = tl.full((T, CB), float("inf"), tl.float32)
    high = tl.full((T, CB), float("-inf"), tl.float32)
    for first in tl.range(0, SPAN, T, num_stages=4):
        here = at + tl.minimum(token + first, last).to(tl.int64) * C  # the last token stands in for those beyond
        value = tl.load(here, inside[None, :], other=0.0).to(tl.float32)
        total += tl.where(token + first <= last, value, 0.0)
        low, high = tl.minimum(low, value), tl.maximum(high, value)
    base = out + (item * spans + span) * 3 * C + channel
    tl.store(base, tl.sum(total, 0), inside)
    tl.store(base + C, tl.min(low, 0), inside)
    tl.store(base + 2 * C, tl.max(high, 0), inside)


@triton.jit
def _quantize_kernel(x, mean, scale, out, length, C: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr):
    """One token: (x - mean) / scale."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    value = tl.load(x + token * C + channel, mask, other=0.0).to(tl.float32)
    if CENTRED:
        value -= tl.load(mean + token // length * C + channel, mask, other=0.0)
    tl.store(out + token * C + channel, (value / tl.load(scale)).to(out.dtype.element_ty), mask)


@triton.jit
def _dequantize_kernel(x, mean, scale, out, length, C: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr):
    """One token: x * scale + mean."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    value = tl.load(x + token * C + channel, mask, other=0.0).to(tl.float32) * tl.load(scale)
    if CENTRED:
        value += tl.load(mean + token // length * C + channel, mask, other=0.0)
    tl.store(out + token * C + channel, value.to(out.dtype.element_ty), mask)


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, least and largest value over the tokens: x (n, tokens, c) -> float32 (n, 1, c) each."""
    n, length, c = x.shape
    spans = -(-length // SPAN)
    parts = torch.empty(n, spans, 3, c, device=x.device)
    _statistics_kernel[(n * spans, -(-c // CHANNELS))](x, parts, length, spans, C=c, SPAN=SPAN, T=TOKENS, CB=CHANNELS)
    total, low, high = parts.unbind(2)
    return total.sum(1, keepdim=True) / length, low.amin(1, keepdim=True), high.amax(1, keepdim=True)


def quantize(x: Tensor, mean: Tensor | None, scale: Tensor) -> Tensor:
    """(x - mean) / scale in e4m3: x (n, tokens, c), mean (n, 1, c), scale (1,)."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    return _by_token(_quantize_kernel, x, mean, scale, out)


def dequantize(values: Tensor, scale: Tensor, mean: Tensor | None, dtype: torch.dtype) -> Tensor:
    """values * scale + mean: values (n, tokens, c), scale (1,), mean (n, 1, c)."""
    return _by_token(_dequantize_kernel, values, mean, scale, torch.empty_like(values, dtype=dtype))


def _by_token(kernel: triton.JITFunction, x: Tensor, mean: Tensor | None, scale: Tensor, out: Tensor) -> Tensor:
    n, length, c = x.shape
    kernel[(n * length,)](x, mean, scale, out, length, C=c, BLOCK=power_of_2(c), CENTRED=mean is not None)
    return out


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where the kernels do not run on this device or give other numbers than plain PyTorch."""
    x = torch.randn(2, 70, 24, generator=torch.Generator().manual_seed(0)).to(device, dtype) + 3
    mean, low, high = statistics(x)
    check_equal("mean", mean, x.float().mean(1, keepdim=True))
    check_equal("range", high - low, (x.amax(1, keepdim=True) - x.amin(1, keepdim=True)).float())
    scale = torch.full((1,), 0.5, device=device)
    expected = ((x.float() - mean) / scale).to(torch.float8_e4m3fn).float()
    values = quantize(x, mean, scale)
    check_equal("quantize", values, expected)
    check_equal("dequantize", dequantize(values, scale, mean, torch.float32), expected * scale + mean)
