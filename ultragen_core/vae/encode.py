"""Pixels to latents in tiles, equal to the encode of the whole frame: the two passes of decode in reverse order.

The layers before the attention run tile by tile, all frames of a tile before the next; the rest runs over whole frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..rectangle import Rectangle
from .context import Context
from .feature_buffer import FeatureBuffer
from .functional import crop
from .geometry import TileGrid, tile_regions
from .layers import Layer, build_all

FRAMES_PER_LATENT = 4  # but for the first latent frame, which stands for one

Pixels = Callable[[slice, Rectangle], Tensor]
"""pixels(frames, rect): that part of the video, (1, c, frames, *rect.size), in the range that the VAE takes."""


def latent_frames(frames: int) -> int:
    """Latent frames of a video; frames beyond a whole number of them are dropped, as ComfyUI does."""
    return (frames - 1) // FRAMES_PER_LATENT + 1


def split_layers(layers: Sequence[Layer]) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """(layers that run in tiles, layers that run over whole frames)."""
    index = min(index for index, layer in enumerate(layers) if layer.whole_frame)
    return layers[:index], layers[index:]


def tile_grid(pixels: tuple[int, int], latents: tuple[int, int], tile: int) -> TileGrid:
    """The tiles of an encode's features. pixels, latents: rows and columns of a frame. tile: side in pixels."""
    return TileGrid(latents, tile // (pixels[0] // latents[0]), 1)


def in_tiles(
    layers: Sequence[Layer],
    pixels: Pixels,
    size: tuple[int, int],
    grid: TileGrid,
    context: Context,
    features: FeatureBuffer,
    tick: Callable[[], None],
) -> None:
    """Run a video of frames of `size` rows and columns through the layers before the attention into `features`.

    `grid` divides the features. tick() follows every latent frame of every tile.
    """
    for tile in grid.tiles():
        regions = tile_regions(layers, size, tile, grid.clip)
        forward, visible = build_all(layers, regions, context), tile.clip(grid.size)
        for index in range(features.length):
            last = FRAMES_PER_LATENT * index
            frames = slice(max(0, last - FRAMES_PER_LATENT + 1), last + 1)
            x = forward(_read(pixels, frames, regions[0].input, size, context), index == 0)
            features.write(index, visible, crop(x, regions[-1].output, visible))
            tick()


def whole_frames(
    layers: Sequence[Layer], features: FeatureBuffer, context: Context, tick: Callable[[], None]
) -> Tensor:
    """Run `features` through the other layers: mean and log variance of the latents, (1, 2c, t, h, w)."""
    whole = Rectangle.whole(features.size)
    forward = build_all(layers, tile_regions(layers, features.size, whole, (True, True)), context)
    latents = []
    for index in range(features.length):
        latents.append(forward(features.read(index, whole, context), index == 0))
        tick()
    return torch.cat(latents, dim=2)


def _read(pixels: Pixels, frames: slice, rect: Rectangle, size: tuple[int, int], context: Context) -> Tensor:
    """The part `rect` of some frames on the device, zero beyond the image."""
    inside = rect.clip(size)
    x = pixels(frames, inside)
    out = context.empty(x.shape[1], x.shape[2], rect.size).zero_()
    rows, columns = inside.slices_in(rect)
    out[..., rows, columns] = x
    return out
