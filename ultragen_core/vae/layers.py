"""The layers of the Wan VAE: what each needs of its input, and how it runs over a window, frame after frame.

A layer holds ComfyUI's own modules (for their weights and sizes). `open(place, kit)` returns run(x, first) -> Sum,
which remembers what the layer's causal convolutions must remember; `first` marks the video's first frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .arithmetic import Sum, attend, convolve, cropped, norm_silu, paste
from .geometry import Place, Span, Window
from .joint import Joint, Kit

Run = Callable[[Sum, bool], Sum]


class Layer:
    """Same size on both sides, every output pixel from the input pixel below it, unless said otherwise."""

    whole_frame = False

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def need(self, want: Window) -> Window:
        return want

    def open(self, place: Place, kit: Kit) -> Run:
        raise NotImplementedError


def open_layers(layers: Sequence[Layer], where: Sequence[Place], kit: Kit) -> Run:
    """All layers as one."""
    runs = [layer.open(place, kit) for layer, place in zip(layers, where, strict=True)]

    def run(x: Sum, first: bool) -> Sum:
        for step in runs:
            kit.check()
            x = step(x, first)
        return x

    return run


def margin(conv: nn.Module) -> int:
    """Pixels that a convolution of stride 1 looks beyond its own on each side."""
    return conv.kernel_size[-1] // 2


@dataclass(frozen=True)
class Conv(Layer):
    conv: nn.Module

    def need(self, want: Window) -> Window:
        return want.grow(margin(self.conv))

    def open(self, place: Place, kit: Kit) -> Run:
        joint = Joint(kit, self.conv, self.need(place.want), place.size_in)

        def run(x: Sum, first: bool) -> Sum:
            paste(joint.fill(x.frames), cropped(x.total(), place.given, joint.inside))
            return joint()

        return run


@dataclass(frozen=True)
class Head(Layer):
    """Norm, SiLU, convolution."""

    norm: nn.Module
    conv: nn.Module

    def need(self, want: Window) -> Window:
        return want.grow(margin(self.conv))

    def open(self, place: Place, kit: Kit) -> Run:
        norm = kit.norm(self.norm)
        joint = Joint(kit, self.conv, self.need(place.want), place.size_in)

        def run(x: Sum, first: bool) -> Sum:
            norm_silu(x, norm, joint.fill(x.frames), joint.inside.inside(place.given), keep=False)
            return joint()

        return run


@dataclass(frozen=True)
class Residual(Layer):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), x through a 1x1x1 convolution where the channels change."""

    norm1: nn.Module
    conv1: nn.Module
    norm2: nn.Module
    conv2: nn.Module
    shortcut: nn.Module | None

    def need(self, want: Window) -> Window:
        return want.grow(margin(self.conv2)).grow(margin(self.conv1))

    def open(self, place: Place, kit: Kit) -> Run:
        between = place.want.grow(margin(self.conv2))
        norms = kit.norm(self.norm1), kit.norm(self.norm2)
        joint1 = Joint(kit, self.conv1, self.need(place.want), place.size_in)
        joint2 = Joint(kit, self.conv2, between, place.size_in)
        crops = joint1.inside.inside(place.given), joint2.inside.inside(between)
        shortcut = self.shortcut and kit.convolution(self.shortcut)

        def run(x: Sum, first: bool) -> Sum:
            skip = norm_silu(x, norms[0], joint1.fill(x.frames), crops[0], keep=True)
            norm_silu(joint1(), norms[1], joint2.fill(x.frames), crops[1], keep=False)
            skip = cropped(skip, place.given, place.want)
            if shortcut:
                skip = convolve(skip, *shortcut, (1, 1, 1)).total()
            return joint2()._replace(skip=skip)

        return run


@dataclass(frozen=True)
class Attention(Layer):
    """x + proj(attention(to_qkv(norm(x)))), one head over the pixels of each frame."""

    norm: nn.Module
    to_qkv: nn.Module
    proj: nn.Module

    whole_frame = True

    def open(self, place: Place, kit: Kit) -> Run:
        norm = kit.norm(self.norm)
        qkv, qkv_bias = kit.convolution(self.to_qkv)
        proj, proj_bias = kit.convolution(self.proj)

        def run(x: Sum, first: bool) -> Sum:
            total = x.total()
            out = kit.empty(total.shape[1], x.frames, place.want.size)
            for source, target in zip(total.unbind(2), out[0].unbind(1), strict=True):
                tokens = norm(source)[0].flatten(1).t()
                q, k, v = F.linear(tokens, qkv.flatten(1), qkv_bias).chunk(3, dim=1)
                mixed = F.linear(attend(q, k, v, kit.check), proj.flatten(1))
                target.copy_(mixed.t().view_as(target))
            return Sum(out, proj_bias, total)

        return run


@dataclass(frozen=True)
class Upsample(Layer):
    """Twice the frames (all but the video's first, where there is a time convolution), twice the rows and columns."""

    time_conv: nn.Module | None
    conv: nn.Module

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] * 2, size[1] * 2

    def need(self, want: Window) -> Window:
        return want.grow(margin(self.conv)).over(2)

    def open(self, place: Place, kit: Kit) -> Run:
        # Whole pixels of the map below, so that each is written as a block of 2 x 2.
        reach = place.want.grow(margin(self.conv)).hull(place.given.times(2))
        reached = reach.grow(-margin(self.conv))
        time_joint = self.time_conv and Joint(kit, self.time_conv, place.given, place.size_in)
        joint = Joint(kit, self.conv, reach, place.size_out)
        below = joint.inside.over(2)

        def run(x: Sum, first: bool) -> Sum:
            source, held = x.total()[:, None], place.given
            if time_joint and not first:
                paste(time_joint.fill(x.frames), cropped(source[:, 0], held, time_joint.inside))
                source = time_joint().total().unflatten(1, (2, -1))
            spread(cropped(source, held, below), joint.fill(x.frames * source.shape[1]))
            made = joint()
            return made._replace(value=cropped(made.value, reached, place.want))

        return run


def spread(source: torch.Tensor, out: torch.Tensor) -> None:
    """Nearest neighbour: (1, n, c, t, h, w), n frames for each t, to (1, c, t * n, 2h, 2w)."""
    blocks = out.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, source.shape[1]))
    source = source.permute(0, 2, 3, 1, 4, 5)[..., None, :, None]
    paste(blocks, source.expand_as(blocks))


@dataclass(frozen=True)
class Downsample(Layer):
    """Half the rows and columns, zero below and to the right; half the frames where there is a time convolution."""

    conv: nn.Module
    time_conv: nn.Module | None

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // 2, size[1] // 2

    def need(self, want: Window) -> Window:
        beyond = self.conv.kernel_size[-1] - 2
        rows, columns = want.rows.times(2), want.columns.times(2)
        return Window(Span(rows.start, rows.stop + beyond), Span(columns.start, columns.stop + beyond))

    def open(self, place: Place, kit: Kit) -> Run:
        joint = Joint(kit, self.conv, self.need(place.want), place.size_in)
        time_joint = self.time_conv and Joint(kit, self.time_conv, place.want, place.size_out)

        def run(x: Sum, first: bool) -> Sum:
            paste(joint.fill(x.frames), cropped(x.total(), place.given, joint.inside))
            small = joint()
            if not time_joint:
                return small
            small = small.total()
            paste(time_joint.fill(x.frames), cropped(small, place.want, time_joint.inside))
            if first:
                time_joint.remember()
                return Sum(small)
            return time_joint()

        return run
