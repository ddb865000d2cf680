"""Tensors in 8-bit floating point (e4m3: 3 bits of mantissa, at most 448), with one scale for a whole tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


class Quantized(NamedTuple):
    """x = values * scale + mean.

    values: (n, tokens, c) in FP8. scale: float32 (1,). mean: over the tokens, float32 (n, 1, c); None: none was taken
    out.
    """

    values: Tensor
    scale: Tensor
    mean: Tensor | None


def quantize(x: Tensor, centred: bool, triton: bool) -> Quantized:
    """x (n, tokens, c), contiguous, in 8 bits.

    centred: without its mean over the tokens, which would waste the few bits of what differs between tokens.
    """
    if triton:
        kernels = dispatch.kernels("quantize_kernels")
        mean, low, high = kernels.statistics(x)
    else:
        mean, (low, high) = x.mean(1, keepdim=True, dtype=torch.float32), x.aminmax(dim=1, keepdim=True)
    if not centred:
        mean = None
    shift = 0.0 if mean is None else mean
    largest = torch.maximum(high - shift, shift - low).amax().float()
    scale = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny).reshape(1)
    if triton:
        return Quantized(kernels.quantize(x, mean, scale), scale, mean)
    return Quantized(((x - shift) / scale).to(FP8), scale, mean)


def dequantize(x: Quantized, dtype: torch.dtype, triton: bool) -> Tensor:
    """The inverse of `quantize`: values * scale + mean, (n, tokens, c) in `dtype`."""
    if triton:
        return dispatch.kernels("quantize_kernels").dequantize(*x, dtype)
    y = x.values.float() * x.scale
    return (y if x.mean is None else y + x.mean).to(dtype)
