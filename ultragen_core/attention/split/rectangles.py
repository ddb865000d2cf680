"""The rectangles of a token grid that the members hold, and the windows that a rectangle's tokens attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...grid import Region, TokenGrid
from ...ops.resample import interpolation_matrix
from ...rectangle import Rectangle, Span

NARROWEST_STRIP = 12  # columns of tokens


@lru_cache(maxsize=64)
def rectangles(grid: TokenGrid, members: int) -> tuple[Rectangle, ...]:
    """Cut every frame into one rectangle for each member; sizes differ by at most one row and one column.

    Of all layouts (rows x columns of rectangles) it takes strips of whole columns while they are wide enough: borders
    along one axis cut windows into fewer different parts, which costs the host less. Else it takes the layout whose
    largest rectangle is smallest, then the one with the shortest borders. Raises ValueError where a frame has fewer
    rows and columns than any layout needs.
    """
    layouts = [(n, members // n) for n in range(1, members + 1) if members % n == 0]
    possible = [(rows, columns) for rows, columns in layouts if rows <= grid.h and columns <= grid.w]
    if not possible:
        raise ValueError(f"{members} members need as many rectangles, and a frame has only {grid.h}x{grid.w} tokens.")

    def size(layout: tuple[int, int]) -> tuple[bool, int, int]:
        rows, columns = layout
        strips = rows == 1 and grid.w // columns >= NARROWEST_STRIP
        return not strips, -(-grid.h // rows) * -(-grid.w // columns), (rows - 1) * grid.w + (columns - 1) * grid.h

    rows, columns = min(possible, key=size)
    return tuple(
        Rectangle(row_span, column_span)
        for row_span in equal_spans(grid.h, rows)
        for column_span in equal_spans(grid.w, columns)
    )


def fitting(grid: TokenGrid, count: int) -> int:
    """The largest number of rectangles, at most `count`, into which the grid can be cut."""
    while count > 1:
        try:
            rectangles(grid, count)
            return count
        except ValueError:
            count -= 1
    return 1


def largest(grid: TokenGrid, count: int) -> Rectangle:
    """The largest of the rectangles."""
    return max(rectangles(grid, count), key=lambda each: each.area)


def received(t: int, held: Sequence[Rectangle], wanted: Sequence[Rectangle]) -> list[int]:
    """How many tokens of its wanted rectangle, in t frames, each member does not hold."""
    missing = (needed.without(own) for own, needed in zip(held, wanted, strict=True))
    return [t * sum(part.area for part in parts) for parts in missing]


def equal_spans(length: int, count: int) -> list[Span]:
    """Cut an axis into `count` spans whose lengths differ by at most one."""
    return [Span(length * i // count, length * (i + 1) // count) for i in range(count)]


def token_numbers(rectangle: Rectangle, grid: TokenGrid) -> Tensor:
    """The numbers of a rectangle's tokens in the grid, int64, in (t, h, w) order."""
    rows, columns = rectangle.slices
    return torch.arange(grid.tokens).view(grid)[:, rows, columns].flatten()


@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def read_span(length: int, target: int, span: Span, antialias: bool) -> Span:
    """The positions on an axis of `length` from which bilinear resizing to `target` computes the positions of `span`.

    The outermost ones may have a weight of zero.
    """
    if length == target:
        return span
    cpu = torch.device("cpu")
    read = interpolation_matrix(length, target, antialias, torch.float32, cpu)[span.slice].any(0).nonzero()
    return Span(int(read[0]), int(read[-1]) + 1)


class AxisPart(NamedTuple):
    """`count` equal windows on an axis, from `start` to before `stop`. In each, the positions from `first` to before
    `last` are queries.
    """

    start: int
    stop: int
    count: int
    first: int
    last: int

    @property
    def span(self) -> Span:
        return Span(self.start, self.stop)

    @property
    def window(self) -> int:
        return (self.stop - self.start) // self.count

    @property
    def queries(self) -> int:
        """How many queries all windows have together."""
        return self.count * (self.last - self.first)

    def queries_from(self, origin: int) -> slice:
        """Where these are on an axis that begins at `origin`."""
        start = self.start + self.first - origin
        return slice(start, start + self.queries)


def axis_parts(runs: list[tuple[slice, int]], span: Span) -> list[AxisPart]:
    """The windows of an axis that hold the queries of `span`, as runs of windows with the same queries.

    runs: from `grid.cut_axis`.
    """
    parts = []
    for run, count in runs:
        size, first, last = (run.stop - run.start) // count, max(run.start, span.start), min(run.stop, span.stop)
        while first < last:
            window, offset = divmod(first - run.start, size)
            whole = (last - first) // size if offset == 0 else 0
            queries = whole * size or min(size - offset, last - first)
            start = run.start + window * size
            many = max(whole, 1)
            parts.append(AxisPart(start, start + many * size, many, offset, offset + queries // many))
            first += queries
    return parts


@dataclass(frozen=True)
class MapPart:
    """Windows of a map with the queries that a member computes, as products of the parts of both axes."""

    rows: tuple[AxisPart, ...]
    columns: tuple[AxisPart, ...]

    @cached_property
    def queries(self) -> Rectangle:
        """The rectangle of the map that the queries fill."""
        spans = ((axis[0].start + axis[0].first, sum(p.queries for p in axis)) for axis in (self.rows, self.columns))
        return Rectangle(*(Span(start, start + length) for start, length in spans))

    @cached_property
    def windows(self) -> Rectangle:
        """The rectangle of the map that the windows fill."""
        return Rectangle(*(Span(axis[0].start, axis[-1].stop) for axis in (self.rows, self.columns)))

    @cached_property
    def regions(self) -> list[tuple[Region, AxisPart, AxisPart]]:
        """The windows in rectangles that divide evenly, each with its parts of the axes."""
        return [
            (Region(row.span.slice, column.span.slice, (1, row.count, column.count)), row, column)
            for row in self.rows
            for column in self.columns
        ]


@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def query_numbers(t: int, row: AxisPart, column: AxisPart, device: torch.device) -> Tensor | None:
    """The numbers of the queries among a window's tokens, int64 on `device`; None: every token is one."""
    window = TokenGrid(t, row.window, column.window)
    queries = Rectangle(Span(row.first, row.last), Span(column.first, column.last))
    return None if queries.size == window[1:] else token_numbers(queries, window).to(device)
