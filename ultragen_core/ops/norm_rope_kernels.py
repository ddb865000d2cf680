"""Triton form of norm_rope.py.

Maps are contiguous and channel-last; arithmetic is float32 whatever the dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import check_equal, power_of_2


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


def norm_rope_(x: Tensor, weight: Tensor, eps: float, table: Tensor) -> Tensor:
    """RMS norm over the channels, then RoPE, in place: x (n, tokens, c), table (tokens, head_dim / 2, 2)."""
    n, length, c = x.shape
    _norm_rope_kernel[(n * length,)](
        x, weight, table.contiguous(), length, eps, C=c, HALF=table.shape[1], BLOCK=power_of_2(c // 2)
    )  # fmt: skip
    return x


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where the kernel does not run on this device or gives other numbers than plain PyTorch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 72, 24, generator=generator).to(device, dtype)
    weight = torch.randn(24, generator=generator).to(device, dtype)
    angles = torch.rand(72, 6, generator=generator).to(device)
    normed = x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.float()
    pairs = torch.view_as_complex(normed.view(2, 72, 2, 6, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    table = torch.stack((angles.cos(), angles.sin()), -1)
    check_equal("norm_rope", norm_rope_(x, weight, 1e-6, table), torch.view_as_real(pairs).flatten(2))
