"""The published UltraGen layer, operation by operation: the baseline of the benchmarks.

As published: token maps go to convolutions and resizing as channel-first views, resizing is in float32, RMS norms in
float32, RoPE in float64 complex numbers, projections of the hierarchical branch before window partition, the query
projection of the global branch computed twice, attention by PyTorch's default.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ultragen_core.attention.extras import BlockExtras, CoarseBranch
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.rope import rope_table
from ultragen_core.grid import TokenGrid, nearest_multiple


def published_attention(
    attn: nn.Module, x: Tensor, grid: TokenGrid, block: int, extras: BlockExtras, gates: Gates
) -> Tensor:
    """One layer: x (1, s, c) -> (1, s, c)."""
    odd = block % 2
    frames = rearrange(x, "b (t h w) c -> (b t) c h w", t=grid.t, h=grid.h)
    local = _local(attn, x, grid, (4, 5)[odd])
    global_ = _global(attn, frames, grid, extras.global_branch)
    hierarchical = _hierarchical(attn, frames, grid, extras.hierarchical_branch, (2, 3)[odd])
    g_h, g_g = (gate.to(x.dtype) for gate in gates)
    y = g_h * local + (1 - g_h) * hierarchical
    return attn.o(g_g * y + (1 - g_g) * global_)


def _local(attn: nn.Module, x: Tensor, grid: TokenGrid, n: int) -> Tensor:
    x = x.unflatten(1, grid)
    h, w = (nearest_multiple(length, n) for length in grid[1:])
    if (h, w) != grid[1:]:
        x = rearrange(_resize(rearrange(x, "b t h w c -> (b t) c h w"), (h, w)), "(b t) c h w -> b t h w c", t=grid.t)
    x = rearrange(x, "b t (n1 h) (n2 w) c -> (b n1 n2) (t h w) c", n1=n, n2=n)
    window = TokenGrid(grid.t, h // n, w // n)
    q, k = (_rope(_norm(norm, project(x)), window, attn) for norm, project in _norms(attn))
    y = rearrange(
        _attend(q, k, attn.v(x), attn), "(b n1 n2) (t h w) c -> b t (n1 h) (n2 w) c", n1=n, n2=n, t=grid.t, h=h // n
    )
    if (h, w) != grid[1:]:
        frames = rearrange(y, "b t h w c -> (b t) c h w").contiguous()
        y = rearrange(_resize(frames, grid[1:]), "(b t) c h w -> b t h w c", t=grid.t).contiguous()
    return y.flatten(1, 3)


def _global(attn: nn.Module, frames: Tensor, grid: TokenGrid, coarse: CoarseBranch) -> Tensor:
    z = rearrange(coarse.compress(frames), "(b t) c h w -> b (t h w) c", t=grid.t)
    window = TokenGrid(grid.t, grid.h // coarse.ratio, grid.w // coarse.ratio)
    q = _rope(_norm(attn.norm_q, attn.q(z) + coarse.q(z)), window, attn)
    k = _rope(_norm(attn.norm_k, attn.q(z) + coarse.k(z)), window, attn)
    y = _attend(q, k, attn.v(z) + coarse.v(z), attn)
    y = _resize(rearrange(y, "b (t h w) c -> (b t) c h w", t=grid.t, h=window.h), grid[1:])
    y = coarse.refine(rearrange(y, "(b t) c h w -> b c t h w", t=grid.t).contiguous())
    return rearrange(y, "b c t h w -> b (t h w) c").contiguous()


def _hierarchical(attn: nn.Module, frames: Tensor, grid: TokenGrid, coarse: CoarseBranch, n: int) -> Tensor:
    z = coarse.compress(frames)
    h, w = (nearest_multiple(length, n) for length in z.shape[2:])
    if (h, w) != tuple(z.shape[2:]):
        z = _resize(z, (h, w))
    z = rearrange(z, "(b t) c h w -> b (t h w) c", t=grid.t)
    q = _norm(attn.norm_q, attn.q(z) + coarse.q(z))
    k = _norm(attn.norm_k, attn.k(z) + coarse.k(z))
    v = attn.v(z) + coarse.v(z)
    cut = "b (t n1 h n2 w) c -> (n1 n2 b) (t h w) c"
    q, k, v = (rearrange(y, cut, t=grid.t, n1=n, n2=n, h=h // n, w=w // n).contiguous() for y in (q, k, v))
    window = TokenGrid(grid.t, h // n, w // n)
    y = _attend(_rope(q, window, attn), _rope(k, window, attn), v, attn)
    y = rearrange(y, "(n1 n2 b) (t h w) c -> (b t) c (n1 h) (n2 w)", n1=n, n2=n, t=grid.t, h=h // n)
    y = coarse.refine(rearrange(_resize(y, grid[1:]), "(b t) c h w -> b c t h w", t=grid.t))
    return rearrange(y, "b c t h w -> b (t h w) c").contiguous()


def _norms(attn: nn.Module):
    return (attn.norm_q, attn.q), (attn.norm_k, attn.k)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + norm.eps)).to(x.dtype) * norm.weight


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(frames.float(), size=tuple(size), mode="bilinear").to(frames.dtype)


def _rope(x: Tensor, window: TokenGrid, attn: nn.Module) -> Tensor:
    rotation = torch.view_as_complex(rope_table(window, attn.head_dim, x.device).double())[:, None]
    pairs = torch.view_as_complex(x.double().unflatten(-1, (attn.num_heads, -1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(2).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, attn: nn.Module) -> Tensor:
    q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
