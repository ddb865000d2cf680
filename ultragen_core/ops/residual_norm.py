"""What stands between the parts of a Wan block: a gated residual, a layer norm and its modulation, in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch


def residual_(x: Tensor, y: Tensor, gate: Tensor | None, triton: bool) -> Tensor:
    """x + gate * y for x, y (b, s, c), gate (b or 1, 1, c) -> (b, s, c). May overwrite y."""
    if triton and x.is_contiguous() and y.is_contiguous():
        kernels = dispatch.kernels("residual_norm_kernels")
        return kernels.residual_norm_(x, y, gate, None, None, 0.0)[0]
    return x + y if gate is None else torch.addcmul(x, y, gate)


def norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, triton: bool) -> Tensor:
    """scale * layer_norm(x) + shift for x (b, s, c), scale and shift (b or 1, 1, c) -> (b, s, c)."""
    if triton and x.is_contiguous():
        kernels = dispatch.kernels("residual_norm_kernels")
        return kernels.residual_norm_(x, None, None, scale, shift, eps)[1]
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), scale)


def residual_norm_(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, triton: bool
) -> tuple[Tensor, Tensor]:
    """Return `residual_(x, y, gate)` and the `norm` of it. May overwrite y with the first of them."""
    if triton and x.is_contiguous() and y.is_contiguous():
        kernels = dispatch.kernels("residual_norm_kernels")
        return kernels.residual_norm_(x, y, gate, scale, shift, eps)
    x = residual_(x, y, gate, triton=False)
    return x, norm(x, scale, shift, eps, triton=False)
