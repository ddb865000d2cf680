"""The exact tiled Wan VAE inside ComfyUI: its memory manager, its VAE object, its interruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Region(NamedTuple):
    """A finished piece of the output: one video of the batch, and slices of its frames, rows and columns."""

    batch: int
    frames: slice
    rows: slice
    columns: slice


Write = Callable[[Region, torch.Tensor], None]


def decoded_shape(vae, latent_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(batch, frames, height, width) of what a latent of shape (b, c, t, h, w) decodes to."""
    raise NotImplementedError


def stream_decode(vae, samples: torch.Tensor, write: Write, tile: int | None = None, progress=None) -> None:
    """Decode the latent (b, c, t, h, w) exactly, in tiles, handing every finished piece to `write(region, pixels)`.

    `pixels` is (frames, rows, columns, 3), float, 0..1, on the decode device. A region may be written again after memory
    ran out once. `tile` is a side in output pixels; None takes the largest that fits into free device memory.
    `progress(done, total)` is called often.
    """
    raise NotImplementedError


def tiled(vae, tile: int | None = None):
    """A copy of the VAE whose decode, decode_tiled, encode and encode_tiled are exact and tiled; same patcher."""
    raise NotImplementedError
