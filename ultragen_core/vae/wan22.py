"""The layers that Wan 2.2's VAE adds: shortcuts around blocks, and pixels folded into channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .arithmetic import Sum, cropped
from .geometry import Place, Window
from .joint import Kit
from .layers import Layer, Run


@dataclass(frozen=True)
class Fork(Layer):
    """Keeps its input for the Join with the same `key`."""

    key: str

    def open(self, place: Place, kit: Kit) -> Run:
        def run(x: Sum, first: bool) -> Sum:
            kit.kept[self.key] = x.total(), place.given
            return Sum(kit.kept[self.key][0])

        return run


@dataclass(frozen=True)
class Join(Layer):
    """x + resample(what the Fork kept): Wan 2.2's shortcut around a block, ComfyUI's own module, without weights.

    up, down: how many times larger or smaller in rows and columns the block's output is than its input.
    """

    key: str
    resample: Callable[..., torch.Tensor]
    up: int = 1
    down: int = 1

    def open(self, place: Place, kit: Kit) -> Run:
        source = place.want.over(self.up).times(self.down)
        made = source.times(self.up).over(self.down)

        def run(x: Sum, first: bool) -> Sum:
            kept, held = kit.kept.pop(self.key)
            skip = self.resample(cropped(kept, held, source), first)
            skip = cropped(skip, made, place.want)
            return x._replace(skip=skip) if x.skip is None else Sum(x.total(), None, skip)

        return run


@dataclass(frozen=True)
class Patchify(Layer):
    """(1, c, t, h * n, w * n) to (1, c * n * n, t, h, w), in the VAE's own order of channels."""

    n: int

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.n, size[1] // self.n

    def need(self, want: Window) -> Window:
        return want.times(self.n)

    def open(self, place: Place, kit: Kit) -> Run:
        def run(x: Sum, first: bool) -> Sum:
            blocks = x.total().unflatten(4, (-1, self.n)).unflatten(3, (-1, self.n))
            return Sum(blocks.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3))

        return run


@dataclass(frozen=True)
class Unpatchify(Layer):
    """The inverse of Patchify."""

    n: int

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] * self.n, size[1] * self.n

    def need(self, want: Window) -> Window:
        return want.over(self.n)

    def open(self, place: Place, kit: Kit) -> Run:
        made = place.given.times(self.n)

        def run(x: Sum, first: bool) -> Sum:
            blocks = x.total().unflatten(1, (-1, self.n, self.n)).permute(0, 1, 4, 5, 3, 6, 2)
            return Sum(cropped(blocks.flatten(5, 6).flatten(3, 4), made, place.want))

        return run
