"""T3-Video's attention of one member: close windows of its own rectangle, strided windows shared out among members."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ...built_once import built_once
from ...grid import TokenGrid, cut_axis, window_partition, window_unpartition
from ...rectangle import Rectangle, Span
from ..engine import Engine
from ..layer import NO_STRIDE, Projections, attend
from ..t3 import Windows, cuts_coincide, window_grid
from .member import MapMoves, Member, held_numbers, rectangle_moves
from .moves import Moves
from .rectangles import AxisPart, MapPart, axis_parts, equal_spans, query_numbers, rectangles

# Members attend from their own rectangles while the windows there hold at most this many tokens per query: keys and
# values of windows across a border are computed twice. Larger windows are shared out whole.
MOST_COVERED = 1.5


def split_t3_attention(attn: Projections, x: Tensor, windows: Windows, member: Member, engine: Engine) -> Tensor:
    """The layer of `t3_attention` for a member's tokens: x (b, s, c) -> (b, s, c)."""
    member.check(x)
    engine = engine.for_layer(x)
    close = close_windows(member.grid, member.count, windows)
    if close is None:
        y = _shared_out(attn, x, windows, False, member, engine)
    else:
        y = _in_own_rectangle(attn, x, windows, close, member, engine)
    if not cuts_coincide(member.grid, windows):
        y = y.add_(_shared_out(attn, x, windows, True, member, engine)).mul_(0.5)
    return attn.o(y)


@dataclass(frozen=True)
class CloseWindows:
    """The windows of neighbours that hold the tokens of each member's rectangle."""

    parts: tuple[MapPart, ...]
    wanted: tuple[Rectangle, ...]


@built_once(maxsize=64)
def close_windows(grid: TokenGrid, members: int, windows: Windows) -> CloseWindows | None:
    """None where the windows are so large that they are shared out."""
    own = rectangles(grid, members)
    runs = cut_axis(grid.h, windows[1]), cut_axis(grid.w, windows[2])
    parts = tuple(
        MapPart(tuple(axis_parts(runs[0], each.rows)), tuple(axis_parts(runs[1], each.columns))) for each in own
    )
    covered = max(part.windows.area / each.area for part, each in zip(parts, own, strict=True))
    if covered > MOST_COVERED:
        return None
    return CloseWindows(parts, tuple(part.windows for part in parts))


def _in_own_rectangle(
    attn: Projections, x: Tensor, windows: Windows, close: CloseWindows, member: Member, engine: Engine
) -> Tensor:
    grid, part, (b, _, c) = member.grid, close.parts[member.index], x.shape
    own, wide, regions = member.rectangle, part.windows, part.regions
    moves = rectangle_moves(MapMoves(grid, rectangles(grid, member.count), close.wanted))
    source = member.moved(x, moves).unflatten(1, grid.part(wide))
    out = x.new_empty(b, *grid.part(own), c) if len(regions) > 1 else None
    for _, row, column in regions:
        rows, columns = Rectangle(row.span, column.span).slices_in(wide)
        counts = windows[0], row.count, column.count
        y = _attend_to(attn, source[:, :, rows, columns], counts, row, column, engine)
        if out is None:
            return y.flatten(1, 3)
        out[:, :, row.queries_from(own.rows.start), column.queries_from(own.columns.start)] = y
    return out.flatten(1, 3)


def _attend_to(
    attn: Projections, source: Tensor, counts: Windows, row: AxisPart, column: AxisPart, engine: Engine
) -> Tensor:
    """Attention of the queries in all windows of a map: (b, t, h, w, c) -> (b, t, rows, columns, c).

    counts: windows per axis.
    """
    extent = window_grid(TokenGrid(*source.shape[1:4]), counts)
    queries = query_numbers(extent.t, row, column, source.device)
    y = attend(attn, window_partition(source.contiguous(), counts), extent, engine, queries=queries)
    return window_unpartition(y, counts, TokenGrid(extent.t, row.last - row.first, column.last - column.first))


@dataclass(frozen=True)
class SharedWindows:
    """Windows shared out among members: each computes `whole` windows, and one run of the queries of `rest` windows.

    there, back: moves of the tokens to the members that compute them, and of the results to those that hold them.
    """

    whole: int
    rest: int
    runs: tuple[Span, ...]
    there: Moves
    back: Moves


@built_once(maxsize=64)
@torch.inference_mode(False)
def shared_windows(grid: TokenGrid, members: int, windows: Windows, strided: bool) -> SharedWindows:
    numbers = torch.arange(grid.tokens).view(1, *grid, 1)
    numbers = window_partition(numbers, windows, strided)[..., 0]  # (windows, tokens of a window)
    whole, rest = divmod(prod(windows), members)
    shared = numbers[whole * members :]
    runs = equal_spans(numbers.shape[1], members)
    needed, computed = [], []
    for member, run in enumerate(runs):
        own = numbers[whole * member : whole * (member + 1)].flatten()
        needed.append(torch.cat([own, shared.flatten()]))
        computed.append(torch.cat([own, shared[:, run.slice].flatten()]))
    held = held_numbers(grid, members)
    return SharedWindows(whole, rest, tuple(runs), Moves(held, needed, grid.tokens), Moves(computed, held, grid.tokens))


def _shared_out(
    attn: Projections, x: Tensor, windows: Windows, strided: bool, member: Member, engine: Engine
) -> Tensor:
    """Attention in windows of neighbours, or in strided ones, of a member's tokens (b, s, c) -> (b, s, c)."""
    shares = shared_windows(member.grid, member.count, windows, strided)
    extent, stride = window_grid(member.grid, windows), windows if strided else NO_STRIDE
    tokens = member.moved(x, shares.there).unflatten(1, (-1, extent.tokens))  # (b, windows, tokens of a window, c)
    parts = []
    if shares.whole:
        own = tokens[:, : shares.whole].flatten(0, 1)
        parts.append(attend(attn, own, extent, engine, stride=stride))
    if shares.rest:
        queries = _run(shares.runs[member.index], x.device)
        shared = tokens[:, shares.whole :].flatten(0, 1)
        parts.append(attend(attn, shared, extent, engine, stride=stride, queries=queries))
    computed = [part.unflatten(0, (x.shape[0], -1)).flatten(1, 2) for part in parts]
    return member.moved(torch.cat(computed, 1) if len(computed) > 1 else computed[0], shares.back)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _run(run: Span, device: torch.device) -> Tensor:
    return torch.arange(*run, device=device)
