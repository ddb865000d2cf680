"""Triton form of residual_norm.py.

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
def _residual_norm_kernel(
    x,
    y,
    gate,
    scale,
    shift,
    normed,
    length,
    gate_stride,
    scale_stride,
    shift_stride,
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
):
    """One token: y = x + gate * y (ADD), then normed = scale * layer_norm(y) + shift (NORM)."""
    token = tl.program_id(0).to(tl.int64)
    batch = token // length
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    value = tl.load(x + token * C + channel, mask, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(y + token * C + channel, mask, other=0.0).to(tl.float32)
        if GATED:
            added *= tl.load(gate + batch * gate_stride + channel, mask, other=0.0).to(tl.float32)
        rounded = (value + added).to(y.dtype.element_ty)
        tl.store(y + token * C + channel, rounded, mask)
        value = rounded.to(tl.float32)
    if NORM:
        centred = tl.where(mask, value - tl.sum(value) / C, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred) / C + eps)
        s = tl.load(scale + batch * scale_stride + channel, mask, other=0.0).to(tl.float32)
        b = tl.load(shift + batch * shift_stride + channel, mask, other=0.0).to(tl.float32)
        tl.store(normed + token * C + channel, (centred * inverse * s + b).to(normed.dtype.element_ty), mask)


def residual_norm_(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor | None, Tensor | None]:
    """Return x + gate * y, written over y, and scale * layer_norm of it + shift: x, y (b, s, c), others (b or 1, 1, c).

    Without y, x itself is normed; without scale and shift, nothing is.
    """
    b, length, c = x.shape
    normed = None if scale is None else torch.empty_like(x)
    vectors = [None if v is None else v.expand(b, 1, c) for v in (gate, scale, shift)]
    vectors = [v if v is None or v.stride(-1) == 1 else v.contiguous() for v in vectors]
    strides = [0 if v is None else v.stride(0) for v in vectors]
    _residual_norm_kernel[(b * length,)](
        x, y, *vectors, normed, length, *strides, eps,
        C=c, BLOCK=power_of_2(c), ADD=y is not None, GATED=gate is not None, NORM=scale is not None,
    )  # fmt: skip
    return y, normed


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where the kernel does not run on this device or gives other numbers than plain PyTorch."""
    generator, c = torch.Generator().manual_seed(0), 24
    x, y = torch.randn(2, 2, 5, c, generator=generator).to(device, dtype)
    gate, scale, shift = torch.randn(3, 2, 1, c, generator=generator).to(device, dtype)
    expected = x.float() + gate.float() * y.float()
    total, normed = residual_norm_(x, y.clone(), gate, scale, shift, 1e-6)
    check_equal("residual", total, expected)
    check_equal("layer norm", normed, F.layer_norm(expected, (c,), eps=1e-6) * scale.float() + shift.float())
