"""Changing the resolution of token maps: bilinear resizing frame by frame, strided compression, 3x3x3 refinement."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def resize(x: Tensor, h: int, w: int, antialias: bool = False) -> Tensor:
    """Bilinear, per frame: (b, t, h0, w0, c) -> (b, t, h, w, c). `antialias` matters only where the map shrinks."""
    if x.shape[2:4] == (h, w):
        return x
    b = x.shape[0]
    frames = rearrange(x, "b t h w c -> (b t) c h w")
    frames = F.interpolate(frames, size=(h, w), mode="bilinear", align_corners=False, antialias=antialias)
    return rearrange(frames, "(b t) c h w -> b t h w c", b=b)


def compress(x: Tensor, conv: nn.Module, ratio: int) -> Tensor:
    """A strided depthwise convolution per frame: (b, t, h, w, c) -> (b, t, h // ratio, w // ratio, c), at least one
    token per axis.

    On a grid smaller than the kernel the edge is repeated up to the kernel's size, which folds the kernel onto the
    tokens there are.
    """
    b, _, h, w, _ = x.shape
    frames = rearrange(x, "b t h w c -> (b t) c h w")
    if h < ratio or w < ratio:
        frames = F.pad(frames, (0, max(ratio - w, 0), 0, max(ratio - h, 0)), mode="replicate")
    return rearrange(conv(frames), "(b t) c h w -> b t h w c", b=b)


def refine(x: Tensor, conv: nn.Module) -> Tensor:
    """A depthwise 3x3x3 convolution over time and space: (b, t, h, w, c) -> the same shape."""
    return rearrange(conv(rearrange(x, "b t h w c -> b c t h w")), "b c t h w -> b t h w c")
