"""One branch of UltraGen's layer of one member. What does not change from block to block is computed once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...grid import Region, TokenGrid, cut_axis, window_unpartition
from ...ops.resample import Part, part_to_windows, resize_part
from ...rectangle import Rectangle
from ..engine import Engine
from ..extras import CoarseBranch
from ..layer import Projections, attend
from ..spec import BranchSpec, compressed
from .rectangles import AxisPart, MapPart, axis_parts, query_numbers, read_span


class RegionWork(NamedTuple):
    """Windows of a map that divide evenly. window: extent of each. row, column: its parts of the axes. queries: extent
    of the queries in a window. rows, columns: of all queries, among those of the map.
    """

    region: Region
    window: TokenGrid
    row: AxisPart
    column: AxisPart
    queries: TokenGrid
    rows: slice
    columns: slice


class BranchWork(NamedTuple):
    """What a member computes in a branch.

    at: where the member's part of the grid, or of the compressed map, belongs. size: of the resized map, which is cut
    into windows. queries: extent of all queries. result: where these belong on the resized map. target: rows and
    columns of the grid that come out, of a frame of `frame` tokens.
    """

    at: Part
    size: tuple[int, int]
    regions: tuple[RegionWork, ...]
    queries: TokenGrid
    result: Part
    target: tuple[slice, slice]
    frame: tuple[int, int]


def branch_source(grid: TokenGrid, spec: BranchSpec, ratio: int, output: Rectangle) -> Rectangle:
    """The tokens, or compressed cells, that the windows read from which the rectangle `output` of the grid comes out.

    ratio: of the compression, 1 without.
    """
    part, spans = _part(grid, spec, ratio, output), []
    for length, span in zip(grid[1:], part.windows, strict=True):
        side = spec.map_side(length, ratio)
        spans.append(read_span(compressed(length, ratio), side, span, spec.antialias))
    return Rectangle(*spans)


def branch_work(grid: TokenGrid, spec: BranchSpec, ratio: int, output: Rectangle, source: Rectangle) -> BranchWork:
    """source: what the member holds, at least `branch_source`."""
    part, whole = _part(grid, spec, ratio, output), tuple(compressed(length, ratio) for length in (grid.h, grid.w))
    queries, size = part.queries, tuple(spec.map_side(length, ratio) for length in (grid.h, grid.w))
    return BranchWork(
        at=Part(source.rows.start, source.columns.start, whole),
        size=size,
        regions=tuple(_region(grid.t, queries, *each) for each in part.regions),
        queries=grid.part(queries),
        result=Part(queries.rows.start, queries.columns.start, size),
        target=output.slices,
        frame=(grid.h, grid.w),
    )


def _region(t: int, queries: Rectangle, region: Region, row: AxisPart, column: AxisPart) -> RegionWork:
    return RegionWork(
        region,
        region.window_grid(t),
        row,
        column,
        TokenGrid(t, row.last - row.first, column.last - column.first),
        row.queries_from(queries.rows.start),
        column.queries_from(queries.columns.start),
    )


def _part(grid: TokenGrid, spec: BranchSpec, ratio: int, output: Rectangle) -> MapPart:
    """The windows of a branch's map from which the rectangle `output` of the grid is computed."""
    axes = []
    for length, span in zip(grid[1:], output, strict=True):
        side = spec.map_side(length, ratio)
        # A coarse map is resized without antialiasing, as it only grows.
        queries = read_span(side, length, span, spec.antialias and ratio == 1)
        axes.append(tuple(axis_parts(cut_axis(side, spec.num_windows, spec.shifted), queries)))
    return MapPart(*axes)


def split_branch(
    attn: Projections, x: Tensor, work: BranchWork, spec: BranchSpec, engine: Engine, coarse: CoarseBranch | None = None
) -> Tensor:
    """x (b, t, h, w, c), the map at `work.at` -> the tokens of `work.target` (b, t, rows, columns, c)."""
    t, out = x.shape[1], None
    if len(work.regions) > 1:
        out = x.new_empty(x.shape[0], *work.queries, x.shape[-1])
    for region, window, row, column, queries, rows, columns in work.regions:
        windows = part_to_windows(x, work.at, work.size, region, spec.antialias, engine.triton)
        numbers = query_numbers(t, row, column, x.device)
        y = window_unpartition(
            attend(attn, windows, window, engine, spec, coarse, queries=numbers), region.windows, queries
        )
        if out is None:
            out = y
        else:
            out[:, :, rows, columns] = y
    antialias = spec.antialias and coarse is None
    return resize_part(out, work.result, work.target, work.frame, antialias, engine.triton)
