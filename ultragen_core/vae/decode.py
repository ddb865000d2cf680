"""Latents to pixels in tiles, equal to the decode of the whole frame.

One layer of the decoder sees the whole frame: the attention in its middle, at the latents' resolution. The layers up
to it run over whole frames, and their features wait in a FeatureBuffer. The others run tile by tile, all frames of a
tile before the next, so that only one tile's feature caches exist at a time. (Running more layers over whole frames
saves 2% of the work and takes twice the memory.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .context import Context
from .feature_buffer import FeatureBuffer
from .functional import crop
from .geometry import Rect, TileGrid, tile_regions
from .layers import Layer, build_all

Emit = Callable[[slice, Rect, Tensor], None]
"""emit(frames, rect, pixels): a finished piece of the output, pixels (1, c, frames, *rect.size)."""


def split_layers(layers: Sequence[Layer]) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """(layers that run over whole frames, layers that run in tiles)."""
    index = 1 + max(index for index, layer in enumerate(layers) if layer.whole_frame)
    return layers[:index], layers[index:]


def tile_grid(pixels: tuple[int, int], latents: tuple[int, int], tile: int) -> TileGrid:
    """The tiles of a decode's output. pixels, latents: rows and columns of a frame. tile: side in pixels."""
    return TileGrid(pixels, tile, pixels[0] // latents[0])


def whole_frames(
    layers: Sequence[Layer], z: Tensor, context: Context, features: FeatureBuffer, tick: Callable[[], None]
) -> None:
    """Run latents z (1, c, t, h, w) through the first layers into `features`. tick() follows every latent frame."""
    whole = Rect.whole(features.size)
    forward = build_all(layers, tile_regions(layers, features.size, whole, (True, True)), context)
    for index in range(z.shape[2]):
        x = z[:, :, index : index + 1].to(context.device, context.dtype)
        features.write(index, whole, forward(x, index == 0))
        tick()


def in_tiles(
    layers: Sequence[Layer],
    features: FeatureBuffer,
    grid: TileGrid,
    context: Context,
    emit: Emit,
    tick: Callable[[], None],
) -> None:
    """Run `features` through the other layers, tile after tile of `grid`, which divides the output.

    Every piece goes to `emit` as soon as it is complete; tick() follows.
    """
    for tile in grid.tiles():
        regions = tile_regions(layers, features.size, tile, grid.clip)
        forward, visible, start = build_all(layers, regions, context), tile.clip(grid.size), 0
        for index in range(features.length):
            x = forward(features.read(index, regions[0].input, context), index == 0)
            frames = slice(start, start + x.shape[2])
            emit(frames, visible, crop(x, regions[-1].output, visible))
            start = frames.stop
            tick()
