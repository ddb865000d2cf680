"""Which part of each layer's map a tile needs: the tile and its halo, followed backwards through the layers.

Coordinates are pixels of the map in question (latents, features, output), so the same spans serve every layer. A span
may reach beyond the map's edge: nothing is ever written there, which makes it a convolution's zero padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..rectangle import Rectangle, Span


class LayerGeometry(Protocol):
    """What geometry asks of a layer: map sizes forward, receptive fields backward."""

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]: ...

    def receptive_field(self, output: Rectangle) -> Rectangle: ...


@dataclass(frozen=True)
class TileRegion:
    """One layer's share of one tile.

    input: the rectangle that the layer receives, halo included. output: the one that it produces.
    input_size, output_size: rows and columns of the whole map before and after the layer.
    """

    input: Rectangle
    output: Rectangle
    input_size: tuple[int, int]
    output_size: tuple[int, int]


def output_size(layers: Sequence[LayerGeometry], size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the map that the layers make of one of `size`."""
    for layer in layers:
        size = layer.output_size(size)
    return size


def tile_regions(
    layers: Sequence[LayerGeometry], size: tuple[int, int], output: Rectangle, clip: tuple[bool, bool]
) -> list[TileRegion]:
    """The region of each layer, first to last, for the tile `output` of the last layer's map.

    `size`: rows and columns of the first layer's input. Follows the tile backwards: each layer receives the receptive
    field of what the next one receives, so the halo is exact. `clip`: whether rectangles end at the map's edge, for
    rows and for columns. Where they do not, every tile of a grid has the same shape in every layer, so that cuDNN
    plans each convolution once.
    """
    sizes = [size]
    for layer in layers:
        sizes.append(layer.output_size(sizes[-1]))
    regions = []
    output = _clip(output, sizes[-1], clip)
    for layer, before, after in zip(reversed(layers), sizes[-2::-1], sizes[:0:-1], strict=True):
        received = _clip(layer.receptive_field(output), before, clip)
        regions.append(TileRegion(received, output, before, after))
        output = received
    return regions[::-1]


def _clip(rect: Rectangle, size: tuple[int, int], clip: tuple[bool, bool]) -> Rectangle:
    rows = rect.rows.clip(size[0]) if clip[0] else rect.rows
    columns = rect.columns.clip(size[1]) if clip[1] else rect.columns
    return Rectangle(rows, columns)


class DecodedArea:
    """The pixels of a map of `size` rows and columns that are complete."""

    def __init__(self, size: tuple[int, int]):
        self._missing = [Rectangle.whole(size)]

    def add(self, rect: Rectangle) -> None:
        self._missing = [part for missing in self._missing for part in missing.without(rect)]

    def holds(self, rect: Rectangle) -> bool:
        """Whether all pixels of `rect` are complete."""
        return not any(missing.overlaps(rect) for missing in self._missing)


@dataclass(frozen=True)
class TileGrid:
    """A map of `size` rows and columns divided evenly into tiles of at most `tile` pixels a side.

    Tile sides are multiples of `unit` pixels, and never less than one unit.
    """

    size: tuple[int, int]
    tile: int
    unit: int

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles on each axis."""
        largest = max(self.tile // self.unit, 1) * self.unit
        return -(-self.size[0] // largest), -(-self.size[1] // largest)

    @property
    def count(self) -> int:
        """Tiles in all."""
        return self.counts[0] * self.counts[1]

    @property
    def clip(self) -> tuple[bool, bool]:
        """The `clip` of tile_regions: one or two tiles on an axis have equal shapes when clipped; more would not."""
        return self.counts[0] <= 2, self.counts[1] <= 2

    @property
    def tile_size(self) -> tuple[int, int]:
        """Rows and columns of every tile: as equal as `unit` allows, so that no sliver is left at the edge."""
        return tuple(-(-n // (count * self.unit)) * self.unit for n, count in zip(self.size, self.counts, strict=True))

    def tiles(self) -> Iterator[Rectangle]:
        """The tiles, row by row. The last of an axis may reach beyond the map."""
        height, width = self.tile_size
        for top in range(0, self.size[0], height):
            for left in range(0, self.size[1], width):
                yield Rectangle(Span(top, top + height), Span(left, left + width))
