"""HD-FVD: the Frechet distance between full-resolution patches of videos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..video.frames import quantise

# Pixels per side of a patch: I3D's training size, to which plain FVD downscales whole videos.
SIDE = 224
# Frames per clip. The paper gives no number; 16 is usual for FVD and short enough for any video.
CLIP = 16
_BATCH = 8


class PatchFeatures:
    """Computes features of a video's patches, clip by clip.

    Patches tile the frame around its centre, clips follow each other, both without overlap. A remainder smaller than a
    patch at the borders or shorter than a clip at the end is ignored. Frames are buffered in 8 bits, as other
    implementations of FVD take them: a 4K clip takes 0.4 GB.

    network: (n, 3, CLIP, SIDE, SIDE) in -1..1 -> (n, channels), such as `i3d.I3D`.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]):
        self._network = network
        self._waiting: list[Tensor] = []

    def __call__(self, frame: Tensor) -> Tensor | None:
        """Add the next frame, (3, height, width) in 0..1. Returns features (patches, channels) at the end of a clip,
        else None. Raises ValueError for a frame smaller than a patch.
        """
        if min(frame.shape[1:]) < SIDE:
            raise ValueError(
                f"HD-FVD needs patches of {SIDE}x{SIDE} pixels, got a video of {frame.shape[2]}x{frame.shape[1]}."
                " Measure larger videos, or switch hd_fvd off."
            )
        self._waiting.append(quantise(frame, 8))
        if len(self._waiting) < CLIP:
            return None
        patches = split_patches(torch.stack(self._waiting, dim=1))
        self._waiting.clear()
        return torch.cat([self._network(batch.float() / 127.5 - 1) for batch in patches.split(_BATCH)])


def split_patches(clip: Tensor) -> Tensor:
    """Split (c, t, height, width) into (patches, c, t, SIDE, SIDE), row by row around the centre."""
    rows, columns = (size // SIDE for size in clip.shape[-2:])
    top, left = ((size - count * SIDE) // 2 for size, count in zip(clip.shape[-2:], (rows, columns), strict=True))
    clip = clip[..., top : top + rows * SIDE, left : left + columns * SIDE]
    return rearrange(clip, "c t (i h) (j w) -> (i j) c t h w", h=SIDE, w=SIDE)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet distance of Gaussians fitted to features a (n, channels) and b (m, channels).

    With n or m up to the number of channels the covariance is rank-deficient and the distance too large: compare only
    results from equal numbers of patches. Raises ValueError for fewer than two features on a side.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"A Frechet distance needs at least 2 patches on each side, got {len(a)} and {len(b)}. A patch takes"
            f" {SIDE}x{SIDE} pixels and {CLIP} frames: measure larger or longer videos."
        )
    a, b = (x.double().cpu().numpy() for x in (a, b))
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # trace((A B)^1/2) is the sum of the singular values of A^1/2 B^1/2. This avoids the square root of a nonsymmetric
    # product, whose rounding errors grow with the rank deficiency.
    mixed = np.linalg.svd(_root(covariance_a) @ _root(covariance_b), compute_uv=False).sum()
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T
