"""The depthwise convolutions of the coarse branches: compression, and refinement blended with the finer side."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from . import dispatch
from .resample import interpolation_matrix, resize

# The plain refinement works on the channels in this many parts, each with several channel-first copies.
REFINEMENT_PARTS = 8


def compress(x: Tensor, weight: Tensor, bias: Tensor, ratio: int, triton: bool) -> Tensor:
    """Strided depthwise convolution of every frame: (b, t, h, w, c) -> (b, t, h // ratio, w // ratio, c).

    weight: (c, 1, ratio, ratio). bias: (c,). On a grid smaller than the kernel the edge is repeated up to the kernel's
    size, which folds the kernel onto the tokens there are.
    """
    for axis in (2, 3):
        length = x.shape[axis]
        if length < ratio:
            x = x.index_select(axis, torch.arange(ratio, device=x.device).clamp(max=length - 1))
    if triton and x.is_contiguous():
        kernels = dispatch.kernels("depthwise_kernels")
        return kernels.compress(x, weight, bias, ratio)
    h, w = (length // ratio for length in x.shape[2:4])
    cells = x[:, :, : h * ratio, : w * ratio].unflatten(3, (w, ratio)).unflatten(2, (h, ratio))
    taps = rearrange(weight, "c 1 kh kw -> kh 1 kw c")
    return (cells * taps).sum((3, 5)) + bias


def blend(coarse: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """gate * y + (1 - gate) * (coarse resized to y's grid): coarse (b, t, h0, w0, c), y (b, t, h, w, c), gate (b, 1, c
    or 1) -> y's shape.
    """
    return torch.lerp(resize(coarse, y.shape[2:4]), y, gate[:, :, None, None].to(y.dtype))


def refine_blend_(
    coarse: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    gate: Tensor,
    strips: Iterable[tuple[int, int]],
    triton: bool,
) -> Tensor:
    """`blend` with a depthwise 3x3x3 convolution (over time and space) of the resized map; y may be overwritten.

    weight: (c, 1, 3, 3, 3). bias: (c,). strips: (start, length) of the rows that the Triton form computes one after the
    other, which bounds its memory; the plain form splits the channels instead.
    """
    if triton and y.is_contiguous() and coarse.is_contiguous():
        return _refine_blend_triton_(coarse, weight, bias, y, gate, strips)
    rows, columns = y.shape[2:4]
    coarse = resize(coarse, (rows, coarse.shape[3]))
    gate = gate.expand(-1, -1, y.shape[-1])[:, :, None, None].to(y.dtype)

    def blended(part: slice) -> Tensor:
        # Depthwise 3D convolutions are several times faster on channel-first memory, the copy included.
        wide = _widen(coarse[..., part], columns)
        refined = F.conv3d(wide, weight[part], bias[part], padding=1, groups=wide.shape[1])
        return torch.lerp(rearrange(refined, "b c t h w -> b t h w c"), y[..., part], gate[..., part])

    if torch.is_grad_enabled():
        return blended(slice(None))
    step = -(-y.shape[-1] // REFINEMENT_PARTS)
    for start in range(0, y.shape[-1], step):
        part = slice(start, start + step)
        y[..., part] = blended(part)
    return y


def _refine_blend_triton_(
    coarse: Tensor, weight: Tensor, bias: Tensor, y: Tensor, gate: Tensor, strips: Iterable[tuple[int, int]]
) -> Tensor:
    depthwise_kernels, resample_kernels = map(dispatch.kernels, ("depthwise_kernels", "resample_kernels"))
    gate = gate.expand(-1, -1, y.shape[-1]).contiguous()
    t, rows, columns = y.shape[1:4]
    source, taps = resample_kernels.Layout(*coarse.shape[1:4]), depthwise_kernels.taps(weight)
    for start, length in strips:
        # With the neighbouring rows, which the convolution reads.
        first, last = max(start - 1, 0), min(start + length + 1, rows)
        strip = resample_kernels.Layout(t, last - first, columns, row=first)
        # Not bound to a name, so that one strip is freed before the next one is allocated.
        depthwise_kernels.refine_blend_(
            resample_kernels.resample(coarse, source, strip, (rows, columns)).unflatten(1, strip[:3]),
            taps, bias, y, gate, first, (start, length),
        )  # fmt: skip
    return y


def _widen(x: Tensor, columns: int) -> Tensor:
    """(b, t, h, w, c) -> channel-first (b, c, t, h, columns), resized bilinearly."""
    x = rearrange(x, "b t h w c -> b c t h w").contiguous()
    if x.shape[-1] == columns:
        return x
    return x @ interpolation_matrix(x.shape[-1], columns, False, x.dtype, x.device).t()
