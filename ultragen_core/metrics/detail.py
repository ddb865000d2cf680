"""HD-MSE and HD-LPIPS: the detail a frame loses when it is downscaled and upscaled again."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Appendix D: 2^k for k from 3 to 5.
FACTORS = (8, 16, 32)
# The paper's table has values up to 390, which only pixels of 0 to 255 can reach.
_LEVELS = 255


def hd_mse(frame: Tensor) -> Tensor:
    """Return the mean squared error between a frame and its version without detail, one for each factor.

    frame: (3, height, width) in 0..1. Returns (1, 3) in squared levels of 0..255. HD-MSE is their sum (equation 14),
    averaged over the frames.
    """
    return _lost(frame, lambda whole, reduced: F.mse_loss(_LEVELS * whole, _LEVELS * reduced))


def hd_lpips(frame: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the LPIPS between a frame and its version without detail, one for each factor.

    frame: (3, height, width) in 0..1. distance: takes two (1, 3, height, width) in -1..1, such as `lpips.LPIPS`.
    Returns (1, 3). HD-LPIPS is their sum (equation 15), averaged over the frames.
    """
    return _lost(frame, lambda whole, reduced: distance(2 * whole - 1, 2 * reduced - 1).squeeze())


def _lost(frame: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    whole = frame[None]
    return torch.stack([distance(whole, without_detail(whole, factor)) for factor in FACTORS])[None]


def without_detail(frames: Tensor, factor: int) -> Tensor:
    """Downscale frames (n, c, height, width) by `factor` and upscale them to their size again.

    The paper names no filter. This uses bilinear both ways, antialiased on the way down: otherwise the metric would
    measure aliasing too.
    """
    size = frames.shape[-2:]
    small = [max(1, round(side / factor)) for side in size]
    reduced = F.interpolate(frames, small, mode="bilinear", antialias=True)
    return F.interpolate(reduced, size, mode="bilinear")
