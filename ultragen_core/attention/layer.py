"""One UltraGen layer in place of a Wan self-attention: three branches of windowed attention, blended by gates.

Notation: b batch, c channels, n heads, s = t * h * w tokens in (t, h, w) order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from ..grid import TokenGrid
from ..ops.depthwise import blend, compress, refine_blend_
from ..ops.norm_rope import norm_rope_
from ..ops.resample import from_windows_, to_windows
from .engine import Engine, in_parts, in_pieces, pieces
from .extras import BlockExtras, CoarseBranch, with_delta
from .gate import Gates
from .spec import BlockSpec, BranchSpec

NO_DELTAS = BranchSpec()
NO_STRIDE = 1, 1, 1


class Projections(Protocol):
    """What a layer uses of a Wan self-attention module. It calls the modules and never reads their weights, so that
    casts, offloading, quantisation and LoRA patches keep working.
    """

    num_heads: int
    head_dim: int
    q: Callable[[Tensor], Tensor]
    k: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    o: Callable[[Tensor], Tensor]
    norm_q: Callable[[Tensor], Tensor]
    norm_k: Callable[[Tensor], Tensor]


def ultragen_attention(
    attn: Projections, x: Tensor, grid: TokenGrid, spec: BlockSpec, extras: BlockExtras, gates: Gates, engine: Engine
) -> Tensor:
    """The layer (section 4 of the paper): x (b, s, c) -> (b, s, c).

    y = g_h * local + (1 - g_h) * hierarchical; y = g_g * y + (1 - g_g) * global; out = W_o y. Where a branch is
    switched off, its gate counts as 1. Raises ValueError where grid and sequence do not match.
    """
    check_grid(x, grid)
    engine = engine.for_layer(x)
    x = x.unflatten(1, grid)
    y = branch(attn, x, spec.local, engine)
    for branch_spec, coarse, gate in coarse_branches(spec, extras, gates):
        y = blended_(branch(attn, x, branch_spec, engine, coarse), coarse, y, gate, engine)
    return attn.o(y.flatten(1, 3))


def coarse_branches(
    spec: BlockSpec, extras: BlockExtras, gates: Gates
) -> list[tuple[BranchSpec, CoarseBranch, Tensor]]:
    """The coarse branches that are on, in the order in which they are blended in, each with its extras and its gate."""
    both = (
        (spec.hierarchical, extras.hierarchical_branch, gates.hierarchical),
        (spec.global_, extras.global_branch, gates.global_),
    )
    return [branch for branch in both if branch[0] is not None]


def check_grid(x: Tensor, grid: TokenGrid) -> None:
    """Raise ValueError where x (b, s, c) does not hold the tokens of `grid`."""
    if x.shape[1] != grid.tokens:
        raise ValueError(f"Token grid must match the sequence, got grid={tuple(grid)}, tokens={x.shape[1]}.")


def branch(
    attn: Projections, x: Tensor, spec: BranchSpec, engine: Engine, coarse: CoarseBranch | None = None
) -> Tensor:
    """One branch: compress (coarse branches only), make divisible, attend inside windows. x: (b, t, h, w, c).

    Returns the local branch on the grid of x, a coarse branch at its own resolution.
    """
    grid = TokenGrid(*x.shape[1:4])
    map_grid, regions = spec.layout(grid, coarse.ratio if coarse else 1)
    map_size = (map_grid.h, map_grid.w)
    if coarse is not None:
        x = compress(x, *engine.parameters(coarse.compress, x), coarse.ratio, engine.triton)
    parts = [
        attend(
            attn,
            to_windows(x, map_size, region, spec.antialias, engine.triton),
            region.window_grid(grid.t),
            engine,
            spec,
            coarse,
        )
        for region in regions
    ]
    output_size = map_size if coarse else (grid.h, grid.w)
    return from_windows_(parts, regions, map_grid, output_size, spec.antialias, engine.triton)


def attend(
    attn: Projections,
    windows: Tensor,
    window_grid: TokenGrid,
    engine: Engine,
    spec: BranchSpec = NO_DELTAS,
    coarse: CoarseBranch | None = None,
    stride: tuple[int, int, int] = NO_STRIDE,
    overwrite: bool = False,
    queries: Tensor | None = None,
) -> Tensor:
    """Attention inside each window, with RoPE positions from 0: (n, tokens of a window, c) -> the same shape.

    spec, coarse: the deltas of a coarse branch are added to the projections before the norms.
    stride: distance in the video's grid between neighbouring tokens of a window, per axis.
    overwrite: the windows may be overwritten with the result.
    queries: numbers (q,) of the tokens of every window that attend to all its tokens -> (n, q, c). None: all.
    """
    scale = engine.rope_scale
    if stride != NO_STRIDE:
        scale = tuple(factor * step for factor, step in zip(scale, stride, strict=True))
    table = engine.rope_tables.table(window_grid, attn.head_dim, windows.device, scale)
    shape = None if queries is None else (len(windows), len(queries), windows.shape[-1])

    def attend_some(x: Tensor) -> Tensor:
        return engine.attend_(_projected(attn, x, table, engine, spec, coarse, queries), attn.num_heads)

    return in_pieces(attend_some, windows, 0, engine.tokens_at_a_time, overwrite, shape)


def _projected(
    attn: Projections,
    x: Tensor,
    table: Tensor,
    engine: Engine,
    spec: BranchSpec,
    coarse: CoarseBranch | None,
    queries: Tensor | None,
) -> list[Tensor]:
    """q (n, queries, c), k and v (n, tokens, c) of windows x (n, tokens, c), with norm and RoPE."""

    def norm_rope(x: Tensor, norm: nn.Module, table: Tensor) -> Tensor:
        return norm_rope_(x, norm, engine.weight, table, attn.num_heads, engine.triton)

    def delta(name: str, y: Tensor, x: Tensor) -> Tensor:
        return with_delta(y, getattr(coarse, name, None), x, spec.lora_strength)

    given = engine.shared_input((attn.q, attn.k, attn.v), x)
    if queries is None:
        asking, query_table, q = x, table, attn.q(given)
    else:
        asking, query_table = x.index_select(1, queries), table.index_select(0, queries)
        q = attn.q(asking)
    if not spec.key_from_query:
        k = attn.k(given)
    else:
        k = q if queries is None else attn.q(given)
    k = delta("k", k, x)
    # norm_rope_ overwrites its input, which the keys may still share with the queries.
    q = norm_rope(delta("q", q.clone() if k is q else q, asking), attn.norm_q, query_table)
    k = norm_rope(k, attn.norm_k, table)
    return [q, k, delta("v", attn.v(given), x)]


def blended_(coarse_map: Tensor, coarse: CoarseBranch, y: Tensor, gate: Tensor, engine: Engine) -> Tensor:
    """The refined map of a coarse branch blended with y, which may be overwritten."""
    if coarse.refine is None:
        return blend(coarse_map, y, gate)
    weight, bias = engine.parameters(coarse.refine, coarse_map)
    return refine_blend_(coarse_map, weight, bias, y, gate, pieces(y, 2, engine.tokens_at_a_time), engine.triton)


def dense_attention_(
    attn: Projections, x: Tensor, table: Tensor, engine: Engine, sequence: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Full attention with bounded memory: x (b, s, c) -> (b, s, c). Overwrites x, unless gradients are on.

    table: cosine and sine of every token's rotations, float32 (s, head_dim / 2, 2).
    sequence: the tokens that x attends to, with their table; None: x itself.
    Holds keys and values of the whole sequence, and computes queries piece by piece.
    """
    engine = engine.for_layer(x)
    source, source_table = sequence or (x, table)

    def rotated(
        project: Callable[[Tensor], Tensor], norm: nn.Module, x: Tensor, table: Tensor, part: tuple[int, int]
    ) -> Tensor:
        angles = table.narrow(0, *part)
        return norm_rope_(project(x.narrow(1, *part)), norm, engine.weight, angles, attn.num_heads, engine.triton)

    def keys(part: tuple[int, int]) -> Tensor:
        return rotated(attn.k, attn.norm_k, source, source_table, part)

    def attended(part: tuple[int, int]) -> Tensor:
        q = rotated(attn.q, attn.norm_q, x, table, part)
        return attn.o(engine.attention(q, k, v, attn.num_heads))

    k = in_parts(keys, source, 1, engine.tokens_at_a_time)
    v = in_pieces(attn.v, source, 1, engine.tokens_at_a_time)
    return in_parts(attended, x, 1, engine.tokens_at_a_time, overwrite=True)
