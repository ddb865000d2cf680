"""UltraGen's layer of one member: it attends from its own rectangle in all branches, and gets what these read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...built_once import built_once
from ...grid import TokenGrid, cut_axis, window_unpartition
from ...ops.depthwise import compress
from ...ops.resample import Part, part_to_windows, resize_part
from ..engine import Engine
from ..extras import BlockExtras, CoarseBranch
from ..gate import Gates
from ..layer import Projections, attend, blended_
from ..spec import BlockSpec, BranchSpec
from .member import Member, rectangle_moves
from .rectangles import (
    MapPart,
    Rectangle,
    Span,
    axis_parts,
    query_numbers,
    read_span,
    received,
    rectangles,
)

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
    branches = [
        (branch_spec, coarse, gate)
        for branch_spec, coarse, gate in (
            (spec.hierarchical, extras.hierarchical_branch, gates.hierarchical),
            (spec.global_, extras.global_branch, gates.global_),
        )
        if branch_spec is not None
    ]
    halo = REFINEMENT_HALO if any(coarse.refine is not None for _, coarse, _ in branches) else 0
    shares = block_shares(grid, member.count, spec.local, tuple((s, c.ratio) for s, c, _ in branches), halo)
    own, local = member.rectangle, shares.local[member.index]
    outer, source = own.widened(halo, grid.h, grid.w), shares.sources[member.index]
    held = rectangles(grid, member.count)
    x = member.moved(x, rectangle_moves(grid, held, shares.sources)).unflatten(1, source.grid(grid.t))
    y = _branch(attn, x, source, local, own, grid, spec.local, engine)
    y = _padded(y, own, outer)
    for (branch_spec, coarse, gate), branch in zip(branches, shares.coarse, strict=True):
        part, at = branch.parts[member.index], branch.sources[member.index]
        cells = _cells(x, source, branch.cells[member.index], grid, coarse, engine)
        moves = rectangle_moves(branch.grid, branch.cells, branch.sources)
        cells = member.moved(cells, moves).unflatten(1, at.grid(grid.t))
        y = blended_(_branch(attn, cells, at, part, outer, grid, branch_spec, engine, coarse), coarse, y, gate, engine)
    rows, columns = own.within(outer)
    return attn.o(y[:, :, rows, columns].flatten(1, 3))


def _padded(y: Tensor, own: Rectangle, outer: Rectangle) -> Tensor:
    """y (b, t, h, w, c) with zeros around it; what is computed there is cut off again."""
    if own == outer:
        return y
    edges = own.left - outer.left, outer.right - own.right, own.top - outer.top, outer.bottom - own.bottom
    return F.pad(y, (0, 0, *edges))


@dataclass(frozen=True)
class CoarseShares:
    """A coarse branch, by member. grid: of the compressed map. cells: its tokens that the member computes. sources:
    those that its windows read. parts: its windows and queries on the resized map.
    """

    grid: TokenGrid
    cells: tuple[Rectangle, ...]
    sources: tuple[Rectangle, ...]
    parts: tuple[MapPart, ...]


@dataclass(frozen=True)
class BlockShares:
    """What every member of a block computes. local: windows and queries of the local branch. sources: the tokens that
    its local branch and its cells read.
    """

    local: tuple[MapPart, ...]
    sources: tuple[Rectangle, ...]
    coarse: tuple[CoarseShares, ...]


@built_once(maxsize=64)
@torch.inference_mode(False)
def block_shares(
    grid: TokenGrid, members: int, local: BranchSpec, coarse: tuple[tuple[BranchSpec, int], ...], halo: int
) -> BlockShares:
    """coarse: spec and compression ratio of each coarse branch. halo: of the refinement."""
    own = rectangles(grid, members)
    parts = tuple(_part(grid, local, 1, each) for each in own)
    sources = [_source(grid, local, 1, part) for part in parts]
    shares = tuple(_coarse_shares(grid, members, spec, ratio, halo) for spec, ratio in coarse)
    for (_, ratio), share in zip(coarse, shares, strict=True):
        sources = [
            source.joined(_of_cells(cells, grid, ratio)) for source, cells in zip(sources, share.cells, strict=True)
        ]
    return BlockShares(parts, tuple(sources), shares)


def ultragen_received(
    grid: TokenGrid, members: int, local: BranchSpec, coarse: tuple[tuple[BranchSpec, int], ...], refined: bool
) -> tuple[int, ...]:
    """How many tokens and compressed cells each member gets from others in a layer. coarse: as in `block_shares`.
    refined: whether the extras refine.
    """
    shares = block_shares(grid, members, local, coarse, REFINEMENT_HALO if refined and coarse else 0)
    counts = [received(grid.t, rectangles(grid, members), shares.sources)]
    counts += [received(grid.t, branch.cells, branch.sources) for branch in shares.coarse]
    return tuple(map(sum, zip(*counts, strict=True)))


def _coarse_shares(grid: TokenGrid, members: int, spec: BranchSpec, ratio: int, halo: int) -> CoarseShares:
    own = rectangles(grid, members)
    cells_grid = TokenGrid(grid.t, *(max(length // ratio, 1) for length in (grid.h, grid.w)))

    def cells(span: Span, count: int) -> Span:
        """A cell belongs to the member that holds its first token."""
        first, last = (min(-(-edge // ratio), count) for edge in span)
        return first, last

    computed = tuple(Rectangle.of(cells(each.rows, cells_grid.h), cells(each.columns, cells_grid.w)) for each in own)
    parts = tuple(_part(grid, spec, ratio, each.widened(halo, grid.h, grid.w)) for each in own)
    sources = tuple(_source(grid, spec, ratio, part) for part in parts)
    return CoarseShares(cells_grid, computed, sources, parts)


def _part(grid: TokenGrid, spec: BranchSpec, ratio: int, output: Rectangle) -> MapPart:
    """The windows of a branch's map from which the rectangle `output` of the grid is computed."""
    axes = []
    for length, span in zip((grid.h, grid.w), (output.rows, output.columns), strict=True):
        side = spec.map_side(length, ratio)
        # A coarse map is resized without antialiasing, as it only grows.
        queries = read_span(side, length, span, spec.antialias and ratio == 1)
        axes.append(tuple(axis_parts(cut_axis(side, spec.num_windows, spec.shifted), queries)))
    return MapPart(*axes)


def _source(grid: TokenGrid, spec: BranchSpec, ratio: int, part: MapPart) -> Rectangle:
    """The tokens or cells, before resizing, that the windows of a part read."""
    spans = []
    for length, span in zip((grid.h, grid.w), (part.windows.rows, part.windows.columns), strict=True):
        side = spec.map_side(length, ratio)
        spans.append(read_span(max(length // ratio, 1), side, span, spec.antialias))
    return Rectangle.of(*spans)


def _of_cells(cells: Rectangle, grid: TokenGrid, ratio: int) -> Rectangle:
    """The tokens of cells."""
    rows, columns = (
        (first * ratio, min(last * ratio, length))
        for (first, last), length in zip((cells.rows, cells.columns), (grid.h, grid.w), strict=True)
    )
    return Rectangle.of(rows, columns)


def _cells(
    x: Tensor, source: Rectangle, cells: Rectangle, grid: TokenGrid, coarse: CoarseBranch, engine: Engine
) -> Tensor:
    """The compressed map's tokens that a member computes: x (b, t, h, w, c) at `source` -> (b, cells, c)."""
    if not cells.grid(grid.t).tokens:
        return x.new_empty(x.shape[0], 0, x.shape[-1])
    rows, columns = _of_cells(cells, grid, coarse.ratio).within(source)
    tokens = x[:, :, rows, columns].contiguous()
    return compress(tokens, *engine.parameters(coarse.compress, x), coarse.ratio, engine.triton).flatten(1, 3)


def _branch(
    attn: Projections,
    x: Tensor,
    source: Rectangle,
    part: MapPart,
    output: Rectangle,
    grid: TokenGrid,
    spec: BranchSpec,
    engine: Engine,
    coarse: CoarseBranch | None = None,
) -> Tensor:
    """One branch: x (b, t, h, w, c), the rectangle `source` of the grid or of the compressed map -> `output` of the
    grid.
    """
    ratio = coarse.ratio if coarse else 1
    (b, t), c, queries = x.shape[:2], x.shape[-1], part.queries
    whole = tuple(max(length // ratio, 1) for length in (grid.h, grid.w))
    size = tuple(spec.map_side(length, ratio) for length in (grid.h, grid.w))
    at, regions = Part(source.top, source.left, whole), part.regions()
    out = x.new_empty(b, *queries.grid(t), c) if len(regions) > 1 else None
    for region, row, column in regions:
        windows = part_to_windows(x, at, size, region, spec.antialias, engine.triton)
        numbers = query_numbers(t, row, column, x.device)
        y = attend(attn, windows, region.window_grid(t), engine, spec, coarse, queries=numbers)
        y = window_unpartition(y, region.windows, TokenGrid(t, row.last - row.first, column.last - column.first))
        if out is None:
            out = y
        else:
            top, left = row.start + row.first - queries.top, column.start + column.first - queries.left
            out[:, :, top : top + row.queries, left : left + column.queries] = y
    antialias = spec.antialias and coarse is None
    target = slice(*output.rows), slice(*output.columns)
    return resize_part(out, Part(queries.top, queries.left, size), target, (grid.h, grid.w), antialias, engine.triton)
