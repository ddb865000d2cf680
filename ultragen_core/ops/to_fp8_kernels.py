"""Triton kernel that rounds inputs of fp8 matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import check_equal

BLOCK = 2048  # values of one program, 16 a thread: one store of 16 bytes


@triton.jit
def _to_fp8_kernel(x, scale, out, size, BLOCK: tl.constexpr, GELU: tl.constexpr, SCALED: tl.constexpr):
    """out = GELU(x) / scale. Each step is rounded to x's dtype, as by separate functions of PyTorch."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    value = tl.load(x + at, mask, other=0.0).to(tl.float32)
    if GELU:  # 0.5 x (1 + tanh(u)) = x sigmoid(2 u), where u = sqrt(2 / pi) (x + 0.044715 x^3)
        doubled = 1.5957691216057308 * (value + 0.044715 * value * value * value)
        value = (value * tl.sigmoid(doubled)).to(x.dtype.element_ty).to(tl.float32)
    if SCALED:
        inverse = (1.0 / tl.load(scale)).to(x.dtype.element_ty).to(tl.float32)
        value = (value * inverse).to(x.dtype.element_ty).to(tl.float32)
    value = tl.where(value > 448.0, 448.0, value)  # NaN stays NaN, unlike with tl.minimum
    value = tl.where(value < -448.0, -448.0, value)
    tl.store(out + at, value.to(out.dtype.element_ty), mask)


def to_fp8(x: Tensor, scale: Tensor | None, gelu: bool) -> Tensor:
    """Triton form of ops.to_fp8.to_fp8: the same arguments and result."""
    out, size = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.numel()
    programs = (-(-size // BLOCK),)
    _to_fp8_kernel[programs](x, scale, out, size, BLOCK=BLOCK, GELU=gelu, SCALED=scale is not None)
    return out


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where the kernel does not run on this device or gives other numbers than plain PyTorch."""
    x = torch.randn(2, 70, 24, generator=torch.Generator().manual_seed(0)).to(device, dtype) + 3
    activated = F.gelu(x, approximate="tanh") * 2
    scale = torch.full((1,), 0.5, device=device)
    check_equal("GELU in fp8", to_fp8(x, scale, True), activated.to(torch.float8_e4m3fn))
    large = x * 1e3
    check_equal("largest values in fp8", to_fp8(large, None, False), large.clamp(-448, 448).to(torch.float8_e4m3fn))
