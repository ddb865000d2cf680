"""HD-FVD: the Frechet distance between videos seen as patches at full resolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..video.frames import quantise

# The paper: patches of the size that FVD makes whole videos smaller to, which is what I3D was trained on.
SIDE = 224
# The paper names no length of clips; 16 is what FVD is usually computed on, and short enough for any video.
CLIP = 16
_AT_ONCE = 8


class PatchFeatures:
    """Features of a video's patches, clip by clip.

    Patches lie side by side around the centre and clips one after the other: what is left over at the borders and at
    the end (less than a patch, less than a clip) is not seen. Frames wait in 8 bits, as FVD's implementations take
    them: a clip of 4K takes 0.4 GB.

    network: (n, 3, CLIP, SIDE, SIDE) in -1..1 -> (n, channels), as `i3d.I3D`.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]):
        self._network = network
        self._waiting: list[Tensor] = []

    def __call__(self, frame: Tensor) -> Tensor | None:
        """Take the next frame, (3, height, width) in 0..1. Returns (patches, channels) at the end of each clip, else
        None. ValueError for a frame smaller than a patch.
        """
        if min(frame.shape[1:]) < SIDE:
            raise ValueError(
                f"HD-FVD looks at patches of {SIDE}x{SIDE} pixels, got a video of {frame.shape[2]}x{frame.shape[1]}."
                " Give it larger videos or leave hd_fvd off."
            )
        self._waiting.append(quantise(frame, 8))
        if len(self._waiting) < CLIP:
            return None
        patches = cut(torch.stack(self._waiting, dim=1))
        self._waiting.clear()
        return torch.cat([self._network(some.float() / 127.5 - 1) for some in patches.split(_AT_ONCE)])


def cut(clip: Tensor) -> Tensor:
    """(c, t, height, width) -> (patches, c, t, SIDE, SIDE), row by row."""
    rows, columns = (size // SIDE for size in clip.shape[-2:])
    top, left = ((size - count * SIDE) // 2 for size, count in zip(clip.shape[-2:], (rows, columns), strict=True))
    clip = clip[..., top : top + rows * SIDE, left : left + columns * SIDE]
    return rearrange(clip, "c t (i h) (j w) -> (i j) c t h w", h=SIDE, w=SIDE)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of two Gaussians fitted to features a (n, channels) and b (m, channels).

    ValueError where one of them has fewer than two features. With no more features than channels the covariance is not
    of full rank: such distances are too large, and comparable only between equal numbers of patches.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"A Frechet distance needs at least 2 patches on each side, got {len(a)} and {len(b)}. "
            f"A video gives one for every {SIDE}x{SIDE} pixels and {CLIP} frames."
        )
    a, b = (x.double().cpu().numpy() for x in (a, b))
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of (A B)^1/2 is the sum of the singular values of A^1/2 B^1/2: no root of a product that is not
    # symmetric, whose rounding errors grow with every direction that the features leave empty.
    mixed = np.linalg.svd(_root(covariance_a) @ _root(covariance_b), compute_uv=False).sum()
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T
