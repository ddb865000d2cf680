"""Which part of each layer's map a tile needs.

All coordinates are pixels of the map at hand (latents, features, output), so the same spans work for every layer. A
span may reach over the image's edge: what lies outside is never written into a convolution's input, and so is its zero
padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Span:
    """Pixels start..stop-1 of one axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def grow(self, n: int) -> Span:
        return Span(self.start - n, self.stop + n)

    def times(self, n: int) -> Span:
        return Span(self.start * n, self.stop * n)

    def over(self, n: int) -> Span:
        """The pixels of a map n times smaller that these come from."""
        return Span(self.start // n, -(-self.stop // n))

    def hull(self, other: Span) -> Span:
        return Span(min(self.start, other.start), max(self.stop, other.stop))

    def clip(self, size: int) -> Span:
        return Span(max(0, self.start), min(size, self.stop))

    def inside(self, outer: Span) -> slice:
        """Where these pixels lie in a tensor that holds `outer`."""
        return slice(self.start - outer.start, self.stop - outer.start)


@dataclass(frozen=True)
class Window:
    """A rectangle: rows by columns."""

    rows: Span
    columns: Span

    @staticmethod
    def whole(size: tuple[int, int]) -> Window:
        return Window(Span(0, size[0]), Span(0, size[1]))

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.size, self.columns.size

    @property
    def area(self) -> int:
        return self.rows.size * self.columns.size

    def grow(self, n: int) -> Window:
        return Window(self.rows.grow(n), self.columns.grow(n))

    def times(self, n: int) -> Window:
        return Window(self.rows.times(n), self.columns.times(n))

    def over(self, n: int) -> Window:
        return Window(self.rows.over(n), self.columns.over(n))

    def hull(self, other: Window) -> Window:
        return Window(self.rows.hull(other.rows), self.columns.hull(other.columns))

    def clip(self, size: tuple[int, int]) -> Window:
        return Window(self.rows.clip(size[0]), self.columns.clip(size[1]))

    def inside(self, outer: Window) -> tuple[slice, slice]:
        return self.rows.inside(outer.rows), self.columns.inside(outer.columns)


class Shape(Protocol):
    """What geometry asks of a layer: sizes forward, needs backward."""

    def size(self, size: tuple[int, int]) -> tuple[int, int]: ...

    def need(self, want: Window) -> Window: ...


@dataclass(frozen=True)
class Place:
    """Where one layer works: what it is given, what is wanted of it, and the size of the whole map on both sides."""

    given: Window
    want: Window
    size_in: tuple[int, int]
    size_out: tuple[int, int]


def output_size(layers: Sequence[Shape], size: tuple[int, int]) -> tuple[int, int]:
    for layer in layers:
        size = layer.size(size)
    return size


def places(layers: Sequence[Shape], size: tuple[int, int], want: Window, clip: tuple[bool, bool]) -> list[Place]:
    """Follow `want`, a window of the last layer's map, back through all layers: each gets what those after it need.

    `clip` says, for rows and columns, whether windows end at the image's edge. Where they do not, every tile of a cut
    has the same shape in every layer, so that cuDNN plans each convolution once.
    """
    sizes = [size]
    for layer in layers:
        sizes.append(layer.size(sizes[-1]))
    found = []
    want = _clip(want, sizes[-1], clip)
    for layer, size_in, size_out in zip(reversed(layers), sizes[-2::-1], sizes[:0:-1], strict=True):
        given = _clip(layer.need(want), size_in, clip)
        found.append(Place(given, want, size_in, size_out))
        want = given
    return found[::-1]


def _clip(window: Window, size: tuple[int, int], clip: tuple[bool, bool]) -> Window:
    rows = window.rows.clip(size[0]) if clip[0] else window.rows
    columns = window.columns.clip(size[1]) if clip[1] else window.columns
    return Window(rows, columns)


@dataclass(frozen=True)
class Cut:
    """An image cut evenly into tiles of at most `tile` pixels a side, on a grid of `unit` pixels."""

    size: tuple[int, int]
    tile: int
    unit: int

    @property
    def counts(self) -> tuple[int, int]:
        return -(-self.size[0] // self._limit), -(-self.size[1] // self._limit)

    @property
    def _limit(self) -> int:
        return max(self.tile // self.unit, 1) * self.unit

    @property
    def clip(self) -> tuple[bool, bool]:
        """One or two tiles on an axis have equal shapes without reaching over the edge; more would not."""
        return self.counts[0] <= 2, self.counts[1] <= 2

    def sides(self) -> tuple[int, int]:
        """Rows and columns of a tile: without slivers, so all but the last are equal."""
        return tuple(-(-n // (count * self.unit)) * self.unit for n, count in zip(self.size, self.counts, strict=True))

    def tiles(self) -> Iterator[Window]:
        height, width = self.sides()
        for top in range(0, self.size[0], height):
            for left in range(0, self.size[1], width):
                yield Window(Span(top, top + height), Span(left, left + width))
