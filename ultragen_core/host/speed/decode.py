"""Times the exact tiled decode of a few frames."""

from __future__ import annotations

import math
from collections.abc import Callable

import comfy.model_management as mm
import torch
from torch import Tensor

from ...pinned_copy import PinnedCopyQueue
from ...plan.speed import DecodeTime
from ...sizes import VideoSize, latent_shape
from ..memory import NotEnoughMemory, may_pin
from ..vae.exact import Progress, stream_decode
from ..vae.shapes import decoded_shape
from .timing import timed

FRAMES = 5, 9  # two and three latent frames
LONGEST, BUDGET = 8.0, 8.0  # seconds of a decode; of all repeats of one


def measure_decodes(vae, sizes: list[VideoSize], device: torch.device) -> list[DecodeTime]:
    """Time decodes of few frames at each size, smallest first, and extrapolate to size.frames.

    Sizes for which memory does not suffice, or which would take longer than LONGEST seconds, are left out.
    """
    made: list[DecodeTime] = []
    for size in sizes:
        few = math.prod(size._replace(frames=FRAMES[0]))
        if made and made[-1].seconds * few / math.prod(made[-1].size) > LONGEST:
            break
        try:
            first, second = (timed(_decode(vae, size._replace(frames=frames)), device, BUDGET) for frames in FRAMES)
        except NotEnoughMemory:
            break
        finally:
            mm.soft_empty_cache()
        made.append(DecodeTime(size, extrapolated(first, second, size.frames)))
    return made


def extrapolated(first: float, second: float, frames: int) -> float:
    """Return seconds of a decode from those of FRAMES. What both spend on choosing a tile does not grow."""
    (few, more) = FRAMES
    return first + max(0.0, second - first) * (frames - few) / (more - few)


def _decode(vae, size: VideoSize) -> Callable[[], Tensor]:
    z = torch.randn(latent_shape(size, 1), generator=torch.Generator().manual_seed(1))
    return lambda: decode_to_bytes(vae, z, None)


def decode_to_bytes(vae, z: Tensor, tile: int | None, progress: Progress = None, gpus: int = 1) -> Tensor:
    """Return the frames (frames, height, width, 3) of one video in 8 bits; arguments as of stream_decode."""
    frames = torch.empty((*decoded_shape(vae, z.shape)[1:], 3), dtype=torch.uint8)
    copies = PinnedCopyQueue(may_pin())

    def write(region, pixels: Tensor) -> None:
        copies.copy(pixels.mul_(255).round_().to(torch.uint8), frames[region[1:]])

    stream_decode(vae, z, write, tile, progress, gpus)
    copies.finish()
    return frames
