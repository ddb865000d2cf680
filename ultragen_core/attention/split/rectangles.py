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

Span = tuple[int, int]
"""First and one past the last position on an axis."""


NARROWEST_STRIP = 12  # columns of tokens


class Rectangle(NamedTuple):
    """The same part of every frame: rows from `top` to before `bottom`, columns from `left` to before `right`."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def of(cls, rows: Span, columns: Span) -> Rectangle:
        return cls(*rows, *columns)

    @property
    def rows(self) -> Span:
        return self.top, self.bottom

    @property
    def columns(self) -> Span:
        return self.left, self.right

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def grid(self, t: int) -> TokenGrid:
        return TokenGrid(t, self.height, self.width)

    def within(self, outer: Rectangle) -> tuple[slice, slice]:
        """Rows and columns of this rectangle in the coordinates of one that holds it."""
        top, left = self.top - outer.top, self.left - outer.left
        return slice(top, top + self.height), slice(left, left + self.width)

    def widened(self, by: int, h: int, w: int) -> Rectangle:
        """With `by` more rows and columns on every side, as far as a frame of h x w has them."""
        return Rectangle(
            max(self.top - by, 0), min(self.bottom + by, h), max(self.left - by, 0), min(self.right + by, w)
        )

    def shared(self, other: Rectangle) -> int:
        """How many tokens of a frame are in both."""
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        width = min(self.right, other.right) - max(self.left, other.left)
        return max(height, 0) * max(width, 0)

    def joined(self, other: Rectangle) -> Rectangle:
        """The smallest rectangle that holds both; an empty one adds nothing."""
        if not other.height or not other.width:
            return self
        return Rectangle(
            min(self.top, other.top),
            max(self.bottom, other.bottom),
            min(self.left, other.left),
            max(self.right, other.right),
        )


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
        Rectangle.of(row_span, column_span)
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
    return max(rectangles(grid, count), key=lambda each: each.height * each.width)


def received(t: int, held: Sequence[Rectangle], wanted: Sequence[Rectangle]) -> list[int]:
    """How many tokens of its wanted rectangle, in t frames, each member does not hold."""
    return [t * (needed.height * needed.width - needed.shared(own)) for own, needed in zip(held, wanted, strict=True)]


def equal_spans(length: int, count: int) -> list[Span]:
    """Cut an axis into `count` spans whose lengths differ by at most one."""
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def token_numbers(rectangle: Rectangle, grid: TokenGrid) -> Tensor:
    """The numbers of a rectangle's tokens in the grid, int64, in (t, h, w) order."""
    numbers = torch.arange(grid.tokens).view(grid)
    return numbers[:, rectangle.top : rectangle.bottom, rectangle.left : rectangle.right].flatten()


@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def read_span(length: int, target: int, span: Span, antialias: bool) -> Span:
    """The positions on an axis of `length` from which bilinear resizing to `target` computes the positions of `span`.

    The outermost ones may have a weight of zero.
    """
    if length == target:
        return span
    cpu = torch.device("cpu")
    read = interpolation_matrix(length, target, antialias, torch.float32, cpu)[slice(*span)].any(0).nonzero()
    return int(read[0]), int(read[-1]) + 1


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
        size, first, last = (run.stop - run.start) // count, max(run.start, span[0]), min(run.stop, span[1])
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
        return Rectangle.of(*((start, start + length) for start, length in spans))

    @cached_property
    def windows(self) -> Rectangle:
        """The rectangle of the map that the windows fill."""
        return Rectangle.of(*((axis[0].start, axis[-1].stop) for axis in (self.rows, self.columns)))

    @cached_property
    def regions(self) -> list[tuple[Region, AxisPart, AxisPart]]:
        """The windows in rectangles that divide evenly, each with its parts of the axes."""
        return [
            (Region(slice(*row[:2]), slice(*column[:2]), (1, row.count, column.count)), row, column)
            for row in self.rows
            for column in self.columns
        ]


@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def query_numbers(t: int, row: AxisPart, column: AxisPart, device: torch.device) -> Tensor | None:
    """The numbers of the queries among a window's tokens, int64 on `device`; None: every token is one."""
    window = TokenGrid(t, row.window, column.window)
    if row[3:] == (0, window.h) and column[3:] == (0, window.w):
        return None
    return token_numbers(Rectangle.of(row[3:], column[3:]), window).to(device)
