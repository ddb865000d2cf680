"""UltraGen's layer of one member: it attends from its own rectangle in all branches, and gets what these read."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...built_once import built_once
from ...grid import TokenGrid
from ...ops.depthwise import compress
from ...rectangle import Rectangle, Span
from ..engine import Engine
from ..extras import BlockExtras, CoarseBranch
from ..gate import Gates
from ..layer import Projections, blended_, coarse_branches
from ..spec import BlockSpec, BranchSpec, compressed
from .branch import BranchWork, branch_source, branch_work, split_branch
from .member import MapMoves, Member, rectangle_moves
from .rectangles import received, rectangles

REFINEMENT_HALO = 1  # rows and columns that the 3x3x3 convolution reads around the tokens that it computes


def split_ultragen_attention(
    attn: Projections,
    x: Tensor,
    spec: BlockSpec,
    extras: BlockExtras,
    gates: Gates,
    member: Member,
    engine: Engine,
) -> Tensor:
    """The layer of `ultragen_attention` for a member's tokens: x (b, s, c) -> (b, s, c)."""
    member.check(x)
    engine, grid = engine.for_layer(x), member.grid
    branches = coarse_branches(spec, extras, gates)
    halo = REFINEMENT_HALO if any(coarse.refine is not None for _, coarse, _ in branches) else 0
    shares = block_shares(grid, member.count, spec.local, tuple((s, c.ratio) for s, c, _ in branches), halo)
    work, b, c = shares.members[member.index], x.shape[0], x.shape[-1]
    moves = rectangle_moves(MapMoves(grid, rectangles(grid, member.count), shares.sources))
    x = member.moved(x, moves).view(b, *work.extent, c)
    y = split_branch(attn, x, work.local, spec.local, engine)
    if work.edges:  # what is computed there is cut off again
        y = F.pad(y, work.edges)
    maps = _gathered_maps(x, [coarse for _, coarse, _ in branches], shares.coarse, work.coarse, member, engine)
    for (branch_spec, coarse, gate), coarse_work, cells in zip(branches, work.coarse, maps, strict=True):
        cells = split_branch(attn, cells, coarse_work.branch, branch_spec, engine, coarse)
        y = blended_(cells, coarse, y, gate, engine)
    rows, columns = work.inner
    return attn.o(y[:, :, rows, columns].flatten(1, 3))


class CoarseWork(NamedTuple):
    """A member's part of a coarse branch. tokens: rows and columns of what it holds that become its cells. extent: of
    the cells that it gets.
    """

    tokens: tuple[slice, slice]
    extent: TokenGrid
    branch: BranchWork


class MemberWork(NamedTuple):
    """A member's part of a layer. extent: of the tokens that it gets. edges: padding (left, right, top, bottom) of the
    local branch's result to the size of the coarse ones', which have a halo; empty: none. inner: rows and columns of
    the result without that.
    """

    extent: TokenGrid
    local: BranchWork
    edges: tuple[int, ...]
    inner: tuple[slice, slice]
    coarse: tuple[CoarseWork, ...]


class BlockShares(NamedTuple):
    """What the members of a block compute. sources: the tokens that each one's local branch and cells read. coarse: of
    each coarse branch, the cells of the compressed map that each member computes, and those that its windows read.
    """

    sources: tuple[Rectangle, ...]
    coarse: tuple[MapMoves, ...]
    members: tuple[MemberWork, ...]


@built_once(maxsize=64)
@torch.inference_mode(False)
def block_shares(
    grid: TokenGrid, members: int, local: BranchSpec, coarse: tuple[tuple[BranchSpec, int], ...], halo: int
) -> BlockShares:
    """coarse: spec and compression ratio of each coarse branch. halo: of the refinement."""
    own = rectangles(grid, members)
    sources = [branch_source(grid, local, 1, each) for each in own]
    shares = tuple(_coarse_shares(grid, members, spec, ratio, halo) for spec, ratio in coarse)
    for (_, ratio), share in zip(coarse, shares, strict=True):
        sources = [
            source.hull(_of_cells(cells, grid, ratio)) for source, cells in zip(sources, share.held, strict=True)
        ]
    work = []
    for index, (rectangle, source) in enumerate(zip(own, sources, strict=True)):
        outer = rectangle.grow(halo).clip(grid[1:])
        parts = tuple(
            CoarseWork(
                _of_cells(share.held[index], grid, ratio).slices_in(source),
                grid.part(share.wanted[index]),
                branch_work(grid, spec, ratio, outer, share.wanted[index]),
            )
            for (spec, ratio), share in zip(coarse, shares, strict=True)
        )
        branch = branch_work(grid, local, 1, rectangle, source)
        edges = _edges(rectangle, outer)
        work.append(MemberWork(grid.part(source), branch, edges, rectangle.slices_in(outer), parts))
    return BlockShares(tuple(sources), shares, tuple(work))


def _edges(own: Rectangle, outer: Rectangle) -> tuple[int, ...]:
    if own == outer:
        return ()
    rows, columns = ((a.start - b.start, b.stop - a.stop) for a, b in zip(own, outer, strict=True))
    return 0, 0, *columns, *rows  # none of the channels


def ultragen_received(
    grid: TokenGrid, members: int, local: BranchSpec, coarse: tuple[tuple[BranchSpec, int], ...], refined: bool
) -> tuple[int, ...]:
    """How many tokens and compressed cells each member gets from others in a layer. coarse: as in `block_shares`.
    refined: whether the extras refine.
    """
    shares = block_shares(grid, members, local, coarse, REFINEMENT_HALO if refined and coarse else 0)
    counts = [received(grid.t, rectangles(grid, members), shares.sources)]
    counts += [received(grid.t, branch.held, branch.wanted) for branch in shares.coarse]
    return tuple(map(sum, zip(*counts, strict=True)))


def _coarse_shares(grid: TokenGrid, members: int, spec: BranchSpec, ratio: int, halo: int) -> MapMoves:
    own = rectangles(grid, members)
    cells_grid = TokenGrid(grid.t, compressed(grid.h, ratio), compressed(grid.w, ratio))

    def cells(span: Span, count: int) -> Span:
        """A cell belongs to the member that holds its first token."""
        return Span(*(min(-(-edge // ratio), count) for edge in span))

    computed = tuple(Rectangle(cells(each.rows, cells_grid.h), cells(each.columns, cells_grid.w)) for each in own)
    sources = tuple(branch_source(grid, spec, ratio, each.grow(halo).clip(grid[1:])) for each in own)
    return MapMoves(cells_grid, computed, sources)


def _of_cells(cells: Rectangle, grid: TokenGrid, ratio: int) -> Rectangle:
    """The tokens of cells."""
    return cells.upscale(ratio).clip(grid[1:])


def _gathered_maps(
    x: Tensor,
    branches: list[CoarseBranch],
    shares: tuple[MapMoves, ...],
    works: tuple[CoarseWork, ...],
    member: Member,
    engine: Engine,
) -> list[Tensor]:
    """What the member's windows read of the compressed map of each branch: (b, t, h, w, c).

    All maps travel together: where members meet, their hosts wait.
    """
    if not branches:
        return []
    cells = [_cells(x, work, coarse, engine) for coarse, work in zip(branches, works, strict=True)]
    moves = rectangle_moves(*shares)
    gathered = member.moved(torch.cat(cells, 1) if len(cells) > 1 else cells[0], moves)
    parts = gathered.split([work.extent.tokens for work in works], 1)
    return [part.contiguous().unflatten(1, work.extent) for part, work in zip(parts, works, strict=True)]


def _cells(x: Tensor, work: CoarseWork, coarse: CoarseBranch, engine: Engine) -> Tensor:
    """The compressed map's tokens that a member computes: x (b, t, h, w, c) -> (b, cells, c)."""
    rows, columns = work.tokens
    tokens = x[:, :, rows, columns].contiguous()
    if not tokens.numel():
        return x.new_empty(x.shape[0], 0, x.shape[-1])
    return compress(tokens, *engine.parameters(coarse.compress, x), coarse.ratio, engine.triton).flatten(1, 3)
