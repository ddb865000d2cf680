"""The layers that Wan 2.2's VAE adds: shortcuts around groups of residual blocks, and pixels folded into channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..ops.vae import DeferredAdd, add_
from ..rectangle import Rectangle
from .context import Context
from .functional import crop
from .geometry import TileRegion
from .layers import Forward, Layer


@dataclass(frozen=True)
class SaveShortcut(Layer):
    """The identity. Keeps its input in the context for the AddShortcut with the same `key`."""

    key: str

    def build(self, region: TileRegion, context: Context) -> Forward:
        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            total = add_(x, context.triton)
            context.shortcuts[self.key] = total, region.input
            return DeferredAdd(total)

        return forward


@dataclass(frozen=True)
class AddShortcut(Layer):
    """x + resample(input of SaveShortcut, first).

    resample: ComfyUI's own DupUp3D or AvgDown3D, which have no weights. up, down: factors on rows and columns between
    the group's input and its output.

    receptive_field is that of x alone, the identity: the group's convolutions read more of its input around each pixel
    than `resample` does, so what SaveShortcut keeps is always enough.
    """

    key: str
    resample: Callable[..., Tensor]
    up: int = 1
    down: int = 1

    def build(self, region: TileRegion, context: Context) -> Forward:
        source = region.output.downscale(self.up).upscale(self.down)
        resampled = source.upscale(self.up).downscale(self.down)

        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            saved, held = context.shortcuts.pop(self.key)
            skip = self.resample(crop(saved, held, source), first)
            skip = crop(skip, resampled, region.output)
            return x._replace(skip=skip) if x.skip is None else DeferredAdd(add_(x, context.triton), None, skip)

        return forward


@dataclass(frozen=True)
class Patchify(Layer):
    """(1, c, t, h * n, w * n) to (1, c * n * n, t, h, w), channels in the order of ComfyUI's patchify."""

    n: int

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.n, size[1] // self.n

    def receptive_field(self, output: Rectangle) -> Rectangle:
        return output.upscale(self.n)

    def build(self, region: TileRegion, context: Context) -> Forward:
        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            blocks = add_(x, context.triton).unflatten(4, (-1, self.n)).unflatten(3, (-1, self.n))
            return DeferredAdd(blocks.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3))

        return forward


@dataclass(frozen=True)
class Unpatchify(Layer):
    """The inverse of Patchify."""

    n: int

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] * self.n, size[1] * self.n

    def receptive_field(self, output: Rectangle) -> Rectangle:
        return output.downscale(self.n)

    def build(self, region: TileRegion, context: Context) -> Forward:
        unfolded = region.input.upscale(self.n)

        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            blocks = add_(x, context.triton).unflatten(1, (-1, self.n, self.n)).permute(0, 1, 4, 5, 3, 6, 2)
            return DeferredAdd(crop(blocks.flatten(5, 6).flatten(3, 4), unfolded, region.output))

        return forward
