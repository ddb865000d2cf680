"""Latents to pixels in tiles, equal to the decode of the whole frame.

One layer of the decoder sees the whole frame: the attention in its middle, at the latents' resolution. The layers up
to it run over whole frames, and their features wait in a FeatureBuffer. The others run tile by tile, all frames of a
tile before the next, so that only one tile's feature caches exist at a time. (Running more layers over whole frames
saves 2% of the work and takes twice the memory.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from ..rectangle import Rectangle
from .context import Context
from .feature_buffer import FeatureBuffer
from .functional import crop
from .geometry import TileGrid, tile_regions
from .layers import Layer, build_all

Emit = Callable[[slice, Rectangle, Tensor], None]
"""emit(frames, rect, pixels): a finished piece of the output, pixels (1, c, frames, *rect.size).

A tile has one piece for each latent frame."""


def split_layers(layers: Sequence[Layer]) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """(layers that run over whole frames, layers that run in tiles)."""
    index = 1 + max(index for index, layer in enumerate(layers) if layer.whole_frame)
    return layers[:index], layers[index:]


def tile_grid(pixels: tuple[int, int], latents: tuple[int, int], tile: int) -> TileGrid:
    """The tiles of a decode's output. pixels, latents: rows and columns of a frame. tile: side in pixels."""
    return TileGrid(pixels, tile, pixels[0] // latents[0])


def whole_frames(
    layers: Sequence[Layer],
    z: Tensor,
    indices: Iterable[int],
    context: Context,
    features: FeatureBuffer,
    written: Callable[[int], None],
) -> None:
    """Run latents z (1, c, t, h, w) through the first layers, and write the frames `indices` into `features`.

    indices: of latent frames, increasing. The convolutions run over the frames between them too, for their feature
    caches; the attention, which takes nine tenths of the time, does not. written(index) follows every frame.
    """
    whole = Rectangle.whole(features.size)
    regions = tile_regions(layers, features.size, whole, (True, True))
    convolutions = build_all(layers[:-1], regions[:-1], context)
    attention = build_all(layers[-1:], regions[-1:], context)
    start = 0
    for index in indices:
        for frame in range(start, index + 1):
            x = convolutions(z[:, :, frame : frame + 1].to(context.device, context.dtype), frame == 0)
        features.write(index, whole, attention(x, index == 0))
        start = index + 1
        written(index)


def in_tiles(
    layers: Sequence[Layer],
    features: FeatureBuffer,
    grid: TileGrid,
    tiles: Iterable[Rectangle],
    context: Context,
    emit: Emit,
) -> None:
    """Run `features` through the other layers, one of `tiles` after another.

    tiles: of `grid`, which divides the output. Every piece goes to `emit` as soon as it is complete.
    """
    for tile in tiles:
        regions = tile_regions(layers, features.size, tile, grid.clip)
        forward, visible, start = build_all(layers, regions, context), tile.clip(grid.size), 0
        for index in range(features.length):
            x = forward(features.read(index, regions[0].input, context), index == 0)
            frames = slice(start, start + x.shape[2])
            emit(frames, visible, crop(x, regions[-1].output, visible))
            start = frames.stop
