"""The layers of the Wan VAE (comfy/ldm/wan/vae.py): the receptive field of each, and how it runs over one region.

A layer holds ComfyUI's own modules, for their weights and sizes. A video goes through it a few frames at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.vae import DeferredAdd, add_, norm_silu_
from ..rectangle import Rectangle, Span
from .cached_conv import CachedConv
from .context import Context
from .functional import attend, convolve, copy_, crop, upsample_nearest_
from .geometry import TileRegion

Forward = Callable[[DeferredAdd, bool], DeferredAdd]


class Layer:
    """By default a layer keeps rows and columns, and each output pixel depends on the input pixel at its position.

    whole_frame: whether every output pixel depends on the whole frame.
    """

    whole_frame = False

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the whole output map for an input map of `size`."""
        return size

    def receptive_field(self, output: Rectangle) -> Rectangle:
        """The input pixels that `output` depends on, beyond the map's edge too."""
        return output

    def build(self, region: TileRegion, context: Context) -> Forward:
        """forward(x, first), with empty feature caches: call it for the video's frames in order.

        x: the next frames over region.input, (1, c, t, h, w). first: whether they begin the video. The result covers
        region.output.
        """
        raise NotImplementedError


def build_all(
    layers: Sequence[Layer], regions: Sequence[TileRegion], context: Context
) -> Callable[[Tensor, bool], Tensor]:
    """forward(x, first) of all layers in turn, on tensors (1, c, t, h, w): regions[0].input to regions[-1].output."""
    forwards = [layer.build(region, context) for layer, region in zip(layers, regions, strict=True)]

    def forward(x: Tensor, first: bool) -> Tensor:
        deferred = DeferredAdd(x)
        for each in forwards:
            context.check_interrupted()
            deferred = each(deferred, first)
        return add_(deferred, context.triton)

    return forward


def halo(conv: nn.Module) -> int:
    """Pixels that a convolution of stride 1 reads beyond its output, on each side."""
    return conv.kernel_size[-1] // 2


@dataclass(frozen=True)
class Conv(Layer):
    """One causal convolution."""

    conv: nn.Module

    def receptive_field(self, output: Rectangle) -> Rectangle:
        return output.grow(halo(self.conv))

    def build(self, region: TileRegion, context: Context) -> Forward:
        conv = CachedConv(context, self.conv, self.receptive_field(region.output), region.input_size)

        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            copy_(conv.input_buffer(x.frames), crop(add_(x, context.triton), region.input, conv.image_rect))
            return conv()

        return forward


@dataclass(frozen=True)
class Head(Layer):
    """Norm, SiLU, convolution."""

    norm: nn.Module
    conv: nn.Module

    def receptive_field(self, output: Rectangle) -> Rectangle:
        return output.grow(halo(self.conv))

    def build(self, region: TileRegion, context: Context) -> Forward:
        norm, triton = context.norm(self.norm), context.triton
        conv = CachedConv(context, self.conv, self.receptive_field(region.output), region.input_size)
        cropped = conv.image_rect.slices_in(region.input)

        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            norm_silu_(x, norm, conv.input_buffer(x.frames), cropped, keep_sum=False, triton=triton)
            return conv()

        return forward


@dataclass(frozen=True)
class Residual(Layer):
    """x + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))), with a 1x1x1 convolution of x where the channels change."""

    norm1: nn.Module
    conv1: nn.Module
    norm2: nn.Module
    conv2: nn.Module
    shortcut: nn.Module | None

    def receptive_field(self, output: Rectangle) -> Rectangle:
        return output.grow(halo(self.conv2)).grow(halo(self.conv1))

    def build(self, region: TileRegion, context: Context) -> Forward:
        between = region.output.grow(halo(self.conv2))
        norm1, norm2, triton = context.norm(self.norm1), context.norm(self.norm2), context.triton
        conv1 = CachedConv(context, self.conv1, self.receptive_field(region.output), region.input_size)
        conv2 = CachedConv(context, self.conv2, between, region.input_size)
        crop1, crop2 = conv1.image_rect.slices_in(region.input), conv2.image_rect.slices_in(between)
        shortcut = self.shortcut and context.convolution(self.shortcut)

        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            skip = norm_silu_(x, norm1, conv1.input_buffer(x.frames), crop1, keep_sum=True, triton=triton)
            norm_silu_(conv1(), norm2, conv2.input_buffer(x.frames), crop2, keep_sum=False, triton=triton)
            skip = crop(skip, region.input, region.output)
            if shortcut:
                skip = add_(convolve(skip, *shortcut, (1, 1, 1)), triton)
            return conv2()._replace(skip=skip)

        return forward


@dataclass(frozen=True)
class Attention(Layer):
    """x + proj(attention(to_qkv(norm(x)))), one head over the pixels of each frame."""

    norm: nn.Module
    to_qkv: nn.Module
    proj: nn.Module

    whole_frame = True

    def build(self, region: TileRegion, context: Context) -> Forward:
        norm = context.norm(self.norm)
        qkv, qkv_bias = context.convolution(self.to_qkv)
        proj, proj_bias = context.convolution(self.proj)

        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            total = add_(x, context.triton)
            out = context.empty(total.shape[1], x.frames, region.output.size)
            for source, target in zip(total.unbind(2), out[0].unbind(1), strict=True):
                tokens = norm(source)[0].flatten(1).t()
                q, k, v = F.linear(tokens, qkv.flatten(1), qkv_bias).chunk(3, dim=1)
                attended = F.linear(attend(q, k, v, context.check_interrupted), proj.flatten(1))
                target.copy_(attended.t().view_as(target))
            return DeferredAdd(out, proj_bias, total)

        return forward


@dataclass(frozen=True)
class Upsample(Layer):
    """Twice the rows and columns; with a time convolution twice the frames too, all but the video's first."""

    time_conv: nn.Module | None
    conv: nn.Module

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] * 2, size[1] * 2

    def receptive_field(self, output: Rectangle) -> Rectangle:
        return output.grow(halo(self.conv)).downscale(2)

    def build(self, region: TileRegion, context: Context) -> Forward:
        # Whole input pixels, so that each is written as a block of 2 x 2.
        upsampled = region.output.grow(halo(self.conv)).hull(region.input.upscale(2))
        convolved = upsampled.grow(-halo(self.conv))
        time_conv = self.time_conv and CachedConv(context, self.time_conv, region.input, region.input_size)
        conv = CachedConv(context, self.conv, upsampled, region.output_size)
        below = conv.image_rect.downscale(2)

        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            source = add_(x, context.triton)[:, None]
            if time_conv and not first:
                copy_(time_conv.input_buffer(x.frames), crop(source[:, 0], region.input, time_conv.image_rect))
                source = add_(time_conv(), context.triton).unflatten(1, (2, -1))
            upsample_nearest_(conv.input_buffer(x.frames * source.shape[1]), crop(source, region.input, below))
            y = conv()
            return y._replace(value=crop(y.value, convolved, region.output))

        return forward


@dataclass(frozen=True)
class Downsample(Layer):
    """Half the rows and columns, padded with zeros below and to the right; with a time convolution half the frames."""

    conv: nn.Module
    time_conv: nn.Module | None

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // 2, size[1] // 2

    def receptive_field(self, output: Rectangle) -> Rectangle:
        beyond = self.conv.kernel_size[-1] - 2
        rows, columns = output.rows.upscale(2), output.columns.upscale(2)
        return Rectangle(Span(rows.start, rows.stop + beyond), Span(columns.start, columns.stop + beyond))

    def build(self, region: TileRegion, context: Context) -> Forward:
        conv = CachedConv(context, self.conv, self.receptive_field(region.output), region.input_size)
        time_conv = self.time_conv and CachedConv(context, self.time_conv, region.output, region.output_size)

        def forward(x: DeferredAdd, first: bool) -> DeferredAdd:
            copy_(conv.input_buffer(x.frames), crop(add_(x, context.triton), region.input, conv.image_rect))
            small = conv()
            if not time_conv:
                return small
            small = add_(small, context.triton)
            copy_(time_conv.input_buffer(x.frames), crop(small, region.output, time_conv.image_rect))
            if first:  # The first frame passes unchanged, and becomes the cache for the next frames.
                time_conv.update_cache()
                return DeferredAdd(small)
            return time_conv()

        return forward
