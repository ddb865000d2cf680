"""Rectangles of a frame or of a map of it: of its tokens, its pixels or its features."""

from __future__ import annotations

from math import prod
from typing import NamedTuple


class Span(NamedTuple):
    """Positions start..stop-1 of one axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    def grow(self, n: int) -> Span:
        """n positions more at both ends."""
        return Span(self.start - n, self.stop + n)

    def upscale(self, n: int) -> Span:
        """These positions on a map n times larger."""
        return Span(self.start * n, self.stop * n)

    def downscale(self, n: int) -> Span:
        """The positions of a map n times smaller that these come from, rounded outwards."""
        return Span(self.start // n, -(-self.stop // n))

    def hull(self, other: Span) -> Span:
        """The smallest span that holds both."""
        return Span(min(self.start, other.start), max(self.stop, other.stop))

    def clip(self, size: int) -> Span:
        """The part inside a map of `size` positions."""
        return Span(max(0, self.start), min(size, self.stop))

    def slice_in(self, outer: Span) -> slice:
        """Where these positions are in a tensor that holds `outer`."""
        return slice(self.start - outer.start, self.stop - outer.start)


class Rectangle(NamedTuple):
    """Rows by columns of a map; its methods do to both axes what Span's do to one."""

    rows: Span
    columns: Span

    @staticmethod
    def whole(size: tuple[int, int]) -> Rectangle:
        """A whole map of `size` rows and columns."""
        return Rectangle(Span(0, size[0]), Span(0, size[1]))

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.size, self.columns.size

    @property
    def area(self) -> int:
        return prod(self.size)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Where it is in a tensor of the whole map."""
        return self.rows.slice, self.columns.slice

    def grow(self, n: int) -> Rectangle:
        return Rectangle(self.rows.grow(n), self.columns.grow(n))

    def upscale(self, n: int) -> Rectangle:
        return Rectangle(self.rows.upscale(n), self.columns.upscale(n))

    def downscale(self, n: int) -> Rectangle:
        return Rectangle(self.rows.downscale(n), self.columns.downscale(n))

    def hull(self, other: Rectangle) -> Rectangle:
        """The smallest rectangle that holds both; an empty one adds nothing."""
        if min(other.size) <= 0:
            return self
        return Rectangle(self.rows.hull(other.rows), self.columns.hull(other.columns))

    def clip(self, size: tuple[int, int]) -> Rectangle:
        return Rectangle(self.rows.clip(size[0]), self.columns.clip(size[1]))

    def overlaps(self, other: Rectangle) -> bool:
        """Whether a position belongs to both."""
        return all(a.start < b.stop and b.start < a.stop for a, b in zip(self, other, strict=True))

    def without(self, other: Rectangle) -> list[Rectangle]:
        """The positions of this rectangle that `other` does not hold, as disjoint rectangles."""
        if not self.overlaps(other):
            return [self]
        top, bottom = max(self.rows.start, other.rows.start), min(self.rows.stop, other.rows.stop)
        left, right = max(self.columns.start, other.columns.start), min(self.columns.stop, other.columns.stop)
        parts = [
            Rectangle(Span(self.rows.start, top), self.columns),
            Rectangle(Span(bottom, self.rows.stop), self.columns),
            Rectangle(Span(top, bottom), Span(self.columns.start, left)),
            Rectangle(Span(top, bottom), Span(right, self.columns.stop)),
        ]
        return [part for part in parts if min(part.size) > 0]

    def slices_in(self, outer: Rectangle) -> tuple[slice, slice]:
        return self.rows.slice_in(outer.rows), self.columns.slice_in(outer.columns)
