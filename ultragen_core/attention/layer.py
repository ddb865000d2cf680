"""One UltraGen layer in place of a Wan self-attention: three branches of windowed attention, gated together.

Notation: b batch, c channels, n heads, s = t * h * w tokens in (t, h, w) order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ..grid import Region, TokenGrid, cut_grid, nearest_multiple
from ..ops.resample import compress, from_windows, refine_blend, to_windows
from .config import BlockSpec, BranchSpec
from .engine import Engine, in_pieces, pieces
from .extras import BlockExtras, CoarseBranch
from .gate import Gates
from .rope import norm_rope, rope_table

NOTHING_ADDED = BranchSpec()


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


def attend(
    attn: Projections,
    windows: Tensor,
    window_grid: TokenGrid,
    engine: Engine,
    spec: BranchSpec = NOTHING_ADDED,
    coarse: CoarseBranch | None = None,
    stride: tuple[int, int, int] = (1, 1, 1),
    overwrite: bool = False,
) -> Tensor:
    """Attention inside each window, RoPE positions starting at 0: (n, tokens of a window, c) -> the same shape.

    spec, coarse: the deltas of a coarse branch are added to the projections before the norms.
    stride: tokens of the video's grid from one token of a window to the next, per axis.
    overwrite: the windows may be overwritten with the result.
    """
    scale = tuple(factor * step for factor, step in zip(engine.rope_scale, stride, strict=True))
    table = rope_table(window_grid, attn.head_dim, windows.device, scale)

    def attend_some(x: Tensor) -> Tensor:
        def delta(name: str, y: Tensor) -> Tensor:
            adapter = getattr(coarse, name, None)
            return y if adapter is None or spec.lora_strength == 0 else y + spec.lora_strength * adapter(x)

        base_q = attn.q(x)
        base_k = base_q if spec.key_from_query else attn.k(x)
        k = delta("k", base_k)
        # Norm and RoPE may overwrite what they are given, which the keys may still share with the queries.
        q = delta("q", base_q.clone() if k is base_q else base_q)
        q = norm_rope(q, attn.norm_q, table, attn.num_heads, engine)
        k = norm_rope(k, attn.norm_k, table, attn.num_heads, engine)
        return engine.attention(q, k, delta("v", attn.v(x)), attn.num_heads)

    return in_pieces(attend_some, windows, 0, engine.tokens_at_a_time, overwrite)


def map_side(length: int, spec: BranchSpec, ratio: int = 1) -> int:
    """The side of the map that a branch attends on, after compression by `ratio` and resizing."""
    side = max(length // ratio, 1)
    return nearest_multiple(side, spec.num_windows) if spec.resize else side


def branch_layout(grid: TokenGrid, spec: BranchSpec, ratio: int = 1) -> tuple[TokenGrid, list[Region]]:
    """The map that a branch attends on, and the windows it is cut into."""
    size = TokenGrid(grid.t, *(map_side(length, spec, ratio) for length in (grid.h, grid.w)))
    return size, cut_grid(size, spec.num_windows, spec.shifted)


def branch(
    attn: Projections, x: Tensor, spec: BranchSpec, engine: Engine, coarse: CoarseBranch | None = None
) -> Tensor:
    """Compress (coarse branches), make divisible, attend in windows: x (b, t, h, w, c).

    Returns the local branch on the grid of x; a coarse branch at its own resolution, to be refined.
    """
    grid = TokenGrid(*x.shape[1:4])
    size, regions = branch_layout(grid, spec, coarse.ratio if coarse else 1)
    map_size = (size.h, size.w)
    if coarse is not None:
        x = compress(x, coarse.compress, coarse.ratio, engine)
    parts = [
        attend(attn, to_windows(x, map_size, region, spec.antialias), region.window_grid(grid.t), engine, spec, coarse)
        for region in regions
    ]
    return from_windows(parts, regions, size, map_size if coarse else (grid.h, grid.w), spec.antialias)


def ultragen_attention(
    attn: Projections, x: Tensor, grid: TokenGrid, spec: BlockSpec, extras: BlockExtras, gates: Gates, engine: Engine
) -> Tensor:
    """The layer: x (b, s, c) -> (b, s, c).

    y = g_h * local + (1 - g_h) * hierarchical; y = g_g * y + (1 - g_g) * global; out = W_o y. A branch that is switched
    off leaves the other side of its gate whole.
    """
    if x.shape[1] != grid.tokens:
        raise ValueError(f"Token grid must match the sequence, got grid={tuple(grid)}, tokens={x.shape[1]}.")
    x = x.unflatten(1, grid)
    y = branch(attn, x, spec.local, engine)
    coarse_branches = (
        (spec.hierarchical, extras.hierarchical_branch, gates.hierarchical),
        (spec.global_, extras.global_branch, gates.global_),
    )
    for branch_spec, coarse, gate in coarse_branches:
        if branch_spec is not None:
            y = refine_blend(branch(attn, x, branch_spec, engine, coarse), coarse.refine, y, gate, engine)
    return attn.o(y.flatten(1, 3))


def dense_attention(attn: Projections, x: Tensor, table: Tensor, engine: Engine) -> Tensor:
    """Full attention with bounded memory: x (b, s, c), which is overwritten with the result, and returned; where a
    backward pass may need it, the result lies elsewhere.

    table: cosine and sine of every token's rotations, float32 (s, head_dim / 2, 2).
    Only keys and values of the whole sequence are held; queries go by a piece at a time.
    """

    def rotated(project: Callable[[Tensor], Tensor], norm: nn.Module, start: int, length: int) -> Tensor:
        angles = table.narrow(0, start, length)
        return norm_rope(project(x.narrow(1, start, length)), norm, angles, attn.num_heads, engine)

    parts = pieces(x, 1, engine.tokens_at_a_time)
    k, v = torch.empty_like(x), in_pieces(attn.v, x, 1, engine.tokens_at_a_time)
    for part in parts:
        k.narrow(1, *part).copy_(rotated(attn.k, attn.norm_k, *part))
    out = torch.empty_like(x) if torch.is_grad_enabled() else x
    for part in parts:
        q = rotated(attn.q, attn.norm_q, *part)
        out.narrow(1, *part).copy_(attn.o(engine.attention(q, k, v, attn.num_heads)))
    return out
