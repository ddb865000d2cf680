"""Times the exact tiled decode of a few frames."""

from __future__ import annotations

import math

import comfy.model_management as mm
import torch
from torch import Tensor

from ...pinned_copy import PinnedCopyQueue
from ...plan.speed import DecodeTime
from ...sizes import VideoSize, latent_shape
from ..memory import NotEnoughMemory
from ..vae.exact import stream_decode
from ..vae.shapes import decoded_shape
from .timing import timed

FRAMES = 5  # two latent frames, the first of which is decoded in another way than the others
LONGEST, BUDGET = 15.0, 8.0


def measure_decodes(vae, sizes: list[VideoSize], device: torch.device) -> list[DecodeTime]:
    """Time a decode of FRAMES frames at each size, smallest first, until memory or time do not suffice."""
    made: list[DecodeTime] = []
    for size in (size._replace(frames=FRAMES) for size in sizes):
        if made and made[-1].seconds * math.prod(size) / math.prod(made[-1].size) > LONGEST:
            break
        z = torch.randn(latent_shape(size, 1), generator=torch.Generator().manual_seed(1))
        try:
            seconds = timed(lambda z=z: decode_to_bytes(vae, z, None), device, BUDGET)
        except NotEnoughMemory:
            break
        finally:
            mm.soft_empty_cache()
        made.append(DecodeTime(size, seconds))
    return made


def decode_to_bytes(vae, z: Tensor, tile: int | None) -> Tensor:
    """Return the frames (frames, height, width, 3) of one video in 8 bits. tile: as in stream_decode."""
    frames = torch.empty((*decoded_shape(vae, z.shape)[1:], 3), dtype=torch.uint8)
    copies = PinnedCopyQueue()

    def write(region, pixels: Tensor) -> None:
        copies.copy(pixels.mul_(255).round_().to(torch.uint8), frames[region[1:]])

    stream_decode(vae, z, write, tile)
    copies.finish()
    return frames
