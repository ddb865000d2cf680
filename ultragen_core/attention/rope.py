"""Wan's rotary position embedding over a token grid whose positions start at 0 on every axis."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from ..grid import TokenGrid
from .engine import Engine, kernels_for

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How Wan shares the channels of a head among t, h and w."""
    third = 2 * (head_dim // 6)
    return head_dim - 2 * third, third, third


@torch.compiler.disable  # a compiled graph would build the table in every call
@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a table made for sampling may serve training next
def rope_table(
    grid: TokenGrid, head_dim: int, device: torch.device, scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Cosine and sine of every rotation, float32 (tokens, head_dim / 2, 2); positions are multiplied by `scale`.

    Angles are formed in float64 on the CPU, because not every device has it.
    """
    per_axis = []
    for length, dim, factor in zip(grid, axis_dims(head_dim), scale, strict=True):
        frequency = THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        per_axis.append(torch.outer(factor * torch.arange(length, dtype=torch.float64), frequency))
    t, h, w = per_axis
    angles = torch.cat(
        [
            t[:, None, None].expand(*grid, -1),
            h[None, :, None].expand(*grid, -1),
            w[None, None, :].expand(*grid, -1),
        ],
        dim=-1,
    ).flatten(0, 2)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float().to(device)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels, at least in float32: x (b, tokens, heads, head_dim) -> the same shape and
    dtype.
    """
    cos, sin = table[:, None].unbind(-1)
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    rotated = pairs[..., :1] * torch.stack((cos, sin), -1)
    return rotated.addcmul_(pairs[..., 1:], torch.stack((-sin, cos), -1)).flatten(-2).to(x.dtype)


def norm_rope(x: Tensor, norm: nn.Module, table: Tensor, heads: int, engine: Engine) -> Tensor:
    """RMS norm over all channels, then RoPE in every head: x (n, tokens, c) -> the same shape; x may be overwritten.

    norm: an RMS norm with a weight, or the identity (a Wan model without qk norm).
    """
    kernels = None if isinstance(norm, nn.Identity) else kernels_for(x)
    if kernels is not None and x.is_contiguous():
        return kernels.norm_rope_(x, engine.parameters(norm, x)[0], norm.eps, table)
    return apply_rope(norm(x).unflatten(-1, (heads, -1)), table).flatten(-2)
