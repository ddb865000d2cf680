"""One UltraGen layer in place of a Wan self-attention: three branches of windowed attention, gated together.

Notation: b batch, c channels, n heads, s = t * h * w tokens in (t, h, w) order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .config import BlockSpec, BranchSpec
from .extras import BlockExtras, CoarseBranch
from .gate import Gates
from .grid import TokenGrid, cut_grid, nearest_multiple, window_partition, window_unpartition
from .resample import compress, refine, resize
from .rope import apply_rope, rope_table

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""attention(q, k, v, heads) on contiguous (batch, tokens, c) tensors -> (batch, tokens, c)."""


class Projections(Protocol):
    """What a layer uses of a Wan self-attention module. Calling the modules, never reading their weights, keeps casts,
    offloading, quantisation and LoRA patches working.
    """

    num_heads: int
    head_dim: int
    q: Callable[[Tensor], Tensor]
    k: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    o: Callable[[Tensor], Tensor]
    norm_q: Callable[[Tensor], Tensor]
    norm_k: Callable[[Tensor], Tensor]


def project(
    attn: Projections, x: Tensor, spec: BranchSpec, coarse: CoarseBranch | None
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k (normalised over all channels) and v of a map, each (b, t, h, w, c), with the deltas of a coarse branch
    added before the norms.
    """

    def delta(name: str, y: Tensor) -> Tensor:
        adapter = getattr(coarse, name, None)
        return y if adapter is None or spec.lora_strength == 0 else y + spec.lora_strength * adapter(x)

    base_q = attn.q(x)
    base_k = base_q if spec.key_from_query else attn.k(x)
    return attn.norm_q(delta("q", base_q)), attn.norm_k(delta("k", base_k)), delta("v", attn.v(x))


def window_attention(attn: Projections, qkv: tuple[Tensor, ...], spec: BranchSpec, attention: Attention) -> Tensor:
    """Attention inside the windows of a map, RoPE positions starting at 0 in each: q, k, v (b, t, h, w, c) -> (b, t, h,
    w, c).
    """
    grid = TokenGrid(*qkv[0].shape[1:4])
    regions = cut_grid(grid, spec.num_windows, spec.shifted)
    out = torch.empty_like(qkv[2]) if len(regions) > 1 else None
    for region in regions:
        window_grid = region.window_grid(grid.t)
        table = rope_table(window_grid, attn.head_dim, qkv[0].device)
        q, k, v = (window_partition(y[:, :, region.rows, region.columns], region.windows) for y in qkv)
        q, k = (apply_rope(y.unflatten(-1, (attn.num_heads, -1)), table).flatten(-2) for y in (q, k))
        y = window_unpartition(attention(q, k, v.contiguous(), attn.num_heads), region.windows, window_grid)
        if out is None:
            return y
        out[:, :, region.rows, region.columns] = y
    return out


def branch(
    attn: Projections, x: Tensor, spec: BranchSpec, attention: Attention, coarse: CoarseBranch | None = None
) -> Tensor:
    """Compress (coarse branches), make divisible, attend in windows, return to the grid, refine: (b, t, h, w, c) -> (b,
    t, h, w, c).
    """
    h, w = x.shape[2:4]
    if coarse is not None:
        x = compress(x, coarse.compress, coarse.ratio)
    if spec.resize:
        x = resize(x, *(nearest_multiple(length, spec.num_windows) for length in x.shape[2:4]), spec.antialias)
    y = window_attention(attn, project(attn, x, spec, coarse), spec, attention)
    y = resize(y, h, w, spec.antialias)
    return y if coarse is None or coarse.refine is None else refine(y, coarse.refine)


def ultragen_attention(
    attn: Projections,
    x: Tensor,
    grid: TokenGrid,
    spec: BlockSpec,
    extras: BlockExtras,
    gates: Gates,
    attention: Attention,
) -> Tensor:
    """The layer: x (b, s, c) -> (b, s, c).

    y = g_h * local + (1 - g_h) * hierarchical; y = g_g * y + (1 - g_g) * global; out = W_o y. A branch that is switched
    off leaves the other side of its gate whole.
    """
    if x.shape[1] != grid.tokens:
        raise ValueError(f"Token grid must match the sequence, got grid={tuple(grid)}, tokens={x.shape[1]}.")
    x = x.unflatten(1, grid)
    y = branch(attn, x, spec.local, attention).flatten(1, 3)
    coarse_branches = (
        (spec.hierarchical, extras.hierarchical_branch, gates.hierarchical),
        (spec.global_, extras.global_branch, gates.global_),
    )
    for branch_spec, coarse, gate in coarse_branches:
        if branch_spec is not None:
            y = torch.lerp(branch(attn, x, branch_spec, attention, coarse).flatten(1, 3), y, gate.to(y.dtype))
    return attn.o(y)
