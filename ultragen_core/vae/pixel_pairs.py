"""Convolutions of 96 channels as convolutions of 192, on pairs of neighbouring pixels.

cuDNN's kernels for Hopper work on blocks of 64 channels, so they compute 96 as slowly as 128, and cuDNN's first choice
is slower still. Two pixels side by side are 192 channels in the same memory. A kernel 3 pixels wide then spans 2 pairs,
where a quarter of the weights are zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHANNELS = 96
KERNEL = (3, 3, 3)
HOPPER = (9, 0)  # compute capability of H100 and H200


def pairs_pay(weight: Tensor, stride: tuple[int, ...], width: int) -> bool:
    """Whether to convolve a map `width` pixels wide in pairs.

    Measured on an H100 in bf16, for 4 frames of a 4K tile: 447 to 477 TFLOP/s without the zeros, instead of 246 by
    cuDNN's first plan or 370 by its fastest; 1.4 times the speed to 3 channels. With 160 or 192 channels, or a kernel
    of one frame, pairs are slower. Other kinds of card were not measured.
    """
    if tuple(weight.shape[1:]) != (CHANNELS, *KERNEL) or stride != (1, 1, 1) or width % 2:
        return False
    if not weight.is_cuda or torch.version.hip is not None or weight.element_size() != 2:
        return False
    return torch.cuda.get_device_capability(weight.device) == HOPPER


def paired_weight(weight: Tensor) -> Tensor:
    """The weight (o, i, t, h, 3) for pairs: (2o, 2i, t, h, 2)."""
    out_channels, in_channels, frames, rows, taps = weight.shape
    pairs = weight.new_zeros(2, out_channels, 2, in_channels, frames, rows, 2)
    for out_pixel in range(2):
        for tap in range(taps):
            pair, in_pixel = divmod(out_pixel + tap, 2)
            pairs[out_pixel, :, in_pixel, ..., pair] = weight[..., tap]
    return pairs.flatten(2, 3).flatten(0, 1)


def as_pairs(x: Tensor) -> Tensor:
    """A channel-last map (1, c, t, h, w) as a view (1, 2c, t, h, w / 2)."""
    return x.movedim(1, -1).unflatten(3, (-1, 2)).flatten(4).movedim(-1, 1)


def as_pixels(pairs: Tensor) -> Tensor:
    """The inverse of as_pairs."""
    return pairs.movedim(1, -1).unflatten(4, (2, -1)).flatten(3, 4).movedim(-1, 1)
