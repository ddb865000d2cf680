"""Latents to pixels in tiles, equal to the decode of the whole frame.

The one thing in the decoder that looks at the whole frame is the attention in its middle, at the latents' resolution.
So the layers up to it run once over whole frames, and what follows runs tile by tile: all frames of a tile, then the
next, with only one tile's memories of past frames alive at a time. (Running more layers before the cut saves 2% of the
work and costs twice the memory.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .arithmetic import Sum, cropped
from .geometry import Cut, Window, places
from .joint import Kit
from .layers import Layer, open_layers
from .shelf import Shelf

Emit = Callable[[slice, Window, torch.Tensor], None]


def split(layers: Sequence[Layer]) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """(layers that see whole frames, layers that are tiled)."""
    cut = 1 + max(index for index, layer in enumerate(layers) if layer.whole_frame)
    return layers[:cut], layers[cut:]


def whole_frames(layers: Sequence[Layer], z: torch.Tensor, kit: Kit, shelf: Shelf, tick: Callable[[], None]) -> None:
    """Latents z (1, c, t, h, w) through the layers up to the attention, one latent frame at a time, onto the shelf."""
    whole = Window.whole(shelf.size)
    run = open_layers(layers, places(layers, shelf.size, whole, (True, True)), kit)
    for index in range(z.shape[2]):
        x = z[:, :, index : index + 1].to(kit.device, kit.dtype)
        shelf.put(index, whole, run(Sum(x), index == 0).total())
        tick()


def in_tiles(layers: Sequence[Layer], shelf: Shelf, cut: Cut, kit: Kit, emit: Emit, tick: Callable[[], None]) -> None:
    """What is on the shelf through the other layers, tile after tile; `cut` is a cut of the output.

    emit(frames, window, pixels) gets every piece (1, c, frames, rows, columns) as soon as it is there.
    """
    for tile in cut.tiles():
        where = places(layers, shelf.size, tile, cut.clip)
        run, made, start = open_layers(layers, where, kit), tile.clip(cut.size), 0
        for index in range(shelf.length):
            x = run(Sum(shelf.get(index, where[0].given, kit)), index == 0).total()
            frames = slice(start, start + x.shape[2])
            emit(frames, made, cropped(x, where[-1].want, made))
            start = frames.stop
            tick()
