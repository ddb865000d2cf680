"""Pixels to latents in tiles, equal to the encode of the whole frame: decode's two halves in the other order.

The layers before the attention run tile by tile, all frames of a tile before the next; the rest runs over whole frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .arithmetic import Sum, cropped
from .geometry import Cut, Window, places
from .joint import Kit
from .layers import Layer, open_layers
from .shelf import Shelf

TIME = 4  # frames per latent frame, but for the first
Pixels = Callable[[slice, Window], torch.Tensor]


def split(layers: Sequence[Layer]) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """(layers that are tiled, layers that see whole frames)."""
    cut = min(index for index, layer in enumerate(layers) if layer.whole_frame)
    return layers[:cut], layers[cut:]


def in_tiles(
    layers: Sequence[Layer],
    pixels: Pixels,
    size: tuple[int, int],
    cut: Cut,
    kit: Kit,
    shelf: Shelf,
    tick: Callable[[], None],
) -> None:
    """Pixels through the layers before the attention, tile after tile, onto the shelf; `cut` is a cut of the features.

    pixels(frames, window) gives (1, c, frames, rows, columns) as the VAE takes them; `size` is a frame's in pixels.
    """
    for tile in cut.tiles():
        where = places(layers, size, tile, cut.clip)
        run, made = open_layers(layers, where, kit), tile.clip(cut.size)
        inside = where[0].given.clip(size)
        for index in range(shelf.length):
            frames = slice(max(0, TIME * index - TIME + 1), TIME * index + 1)
            x = _framed(pixels(frames, inside), inside, where[0].given, kit)
            x = run(Sum(x), index == 0).total()
            shelf.put(index, made, cropped(x, where[-1].want, made))
            tick()


def whole_frames(layers: Sequence[Layer], shelf: Shelf, kit: Kit, tick: Callable[[], None]) -> torch.Tensor:
    """What is on the shelf through the other layers: the latents' mean and variance, (1, 2c, t, h, w)."""
    whole = Window.whole(shelf.size)
    run = open_layers(layers, places(layers, shelf.size, whole, (True, True)), kit)
    made = []
    for index in range(shelf.length):
        made.append(run(Sum(shelf.get(index, whole, kit)), index == 0).total())
        tick()
    return torch.cat(made, dim=2)


def _framed(x: torch.Tensor, held: Window, want: Window, kit: Kit) -> torch.Tensor:
    """x on the device, zero where `want` reaches beyond the image."""
    out = kit.empty(x.shape[1], x.shape[2], want.size).zero_()
    rows, columns = held.inside(want)
    out[..., rows, columns] = x
    return out
