"""RMS norm over all channels, then rotary position embedding (RoPE) in every head, as Wan does to queries and keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import dispatch


def norm_rope_(
    x: Tensor,
    norm: nn.Module,
    weight_of: Callable[[nn.Module, Tensor], Tensor],
    table: Tensor,
    heads: int,
    triton: bool,
) -> Tensor:
    """RoPE(norm(x)) for x (n, tokens, c), which may be overwritten -> the same shape and dtype.

    norm: an RMS norm with `eps`, or the identity (a Wan model without qk norm). weight_of(norm, x): its weight, cast
    for x. table: cosine and sine of every rotation, float32 (tokens, c / heads / 2, 2).
    """
    if triton and x.is_contiguous() and not isinstance(norm, nn.Identity):
        kernels = dispatch.kernels("norm_rope_kernels")
        return kernels.norm_rope_(x, weight_of(norm, x), norm.eps, table)
    return apply_rope(norm(x).unflatten(-1, (heads, -1)), table).flatten(-2)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels, at least in float32: x (b, tokens, heads, head_dim) -> the same shape and
    dtype.
    """
    cos, sin = table[:, None].unbind(-1)
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    rotated = pairs[..., :1] * torch.stack((cos, sin), -1)
    return rotated.addcmul_(pairs[..., 1:], torch.stack((-sin, cos), -1)).flatten(-2).to(x.dtype)
