"""Decode and encode with ComfyUI's VAE object in exact tiles: into a stream of pieces, or as whole images and latents.

A VAE with a fallback reason (see support.py) runs ComfyUI's own decode and encode instead.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import comfy.utils
import torch
from torch import Tensor

from ...out_of_ram import is_host_out_of_memory
from ...pinned_copy import PinnedCopyQueue
from ...rectangle import Rectangle
from ...vae.context import moved
from ...vae.memory import tensor_limit
from ...vae.parse import channels_in
from ..compat import vae_output_dtype
from ..memory import may_pin
from .gpus import decode_workers
from .retry import ram_ran_out
from .run import Report, decode_video, encode_video
from .shapes import check_images, decoded_shape, picture_channels
from .support import vae_support
from .tile_size import SMALLEST_TILE

log = logging.getLogger(__name__)


class OutputRegion(NamedTuple):
    """Where a finished piece belongs: one video of the batch, and slices of its frames, rows and columns."""

    batch: int
    frames: slice
    rows: slice
    columns: slice


Write = Callable[[OutputRegion, Tensor], None]
Progress = Report | comfy.utils.ProgressBar | None
"""A ComfyUI ProgressBar, or called as progress(done, total)."""


def check_gpus(gpus: int) -> None:
    """Raise ValueError unless `gpus` is a number of GPUs that decode takes; 0 is all."""
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 0:
        raise ValueError(f"gpus must be the number of GPUs that decode, or 0 for all, got {gpus}. Choose 1.")


def check_tile(tile: int | None) -> None:
    """Raise ValueError unless `tile` is a side in pixels that decode and encode take; None is auto."""
    if tile is None:
        return
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < SMALLEST_TILE:
        raise ValueError(
            f"tile must be at least {SMALLEST_TILE} pixels, got {tile}. Choose a larger one, or 0 (in Python None) for"
            " automatic."
        )


@torch.no_grad()
def stream_decode(
    vae, samples: Tensor, write: Write, tile: int | None = None, progress: Progress = None, gpus: int = 1
) -> None:
    """Decode latents (b, c, t, h, w), handing every finished piece to `write(region, pixels)`, called in this thread.

    `pixels` is (frames, rows, columns, 3), float, 0..1 or NaN, on the device that decoded it, and the writer may
    overwrite it; alpha is dropped. When memory runs out, the tiles that are not complete come again, in smaller pieces.
    tile: side in output pixels; None takes the largest that fits into free device memory.
    gpus: how many may decode tiles at the same time; 0 is all that ComfyUI sees.
    Raises NotEnoughMemory when even SMALLEST_TILE does not fit, ValueError for a tile below it, for `gpus` below 0 and
    for latents of another VAE.
    """
    check_tile(tile)
    check_gpus(gpus)
    shape = decoded_shape(vae, samples.shape)
    if picture_channels(vae) > 3:
        log.warning(
            "UltraGen: this VAE decodes to pictures with an alpha channel. Video files have none, so it is dropped."
        )

    def write_rgb(region: OutputRegion, pixels: Tensor) -> None:
        write(region, pixels[..., :3])

    if vae_support(vae).fallback_reason:
        _stream_from_comfyui(vae, samples, shape, write_rgb)
    else:
        _stream(vae, samples, functools.partial(_pixels_or_nan, vae), write_rgb, tile, progress, gpus)


@torch.no_grad()
def decode(vae, samples: Tensor, tile: int | None = None, gpus: int = 1) -> Tensor:
    """Decode latents to images (b, frames, height, width, c) on the VAE's output device, as ComfyUI's vae.decode.

    tile, gpus, errors: as stream_decode.
    """
    check_tile(tile)
    check_gpus(gpus)
    if getattr(samples, "is_nested", False):  # video and sound of one model: ComfyUI's node decodes the video
        samples = samples.unbind()[0]
    if vae_support(vae).fallback_reason:
        return vae.decode(samples)
    shape = (*decoded_shape(vae, samples.shape), picture_channels(vae))
    images = empty_images(vae, shape)
    copies = PinnedCopyQueue(may_pin())

    def write(region: OutputRegion, pixels: Tensor) -> None:
        copies.copy(pixels if images.device.type == "cpu" else moved(pixels, images.device), images[region])

    _stream(vae, samples, vae.process_output, write, tile, comfy.utils.ProgressBar(1), gpus)
    copies.finish()
    return images


@torch.no_grad()
def encode(vae, pixels: Tensor, tile: int | None = None) -> Tensor:
    """Encode images ([b,] frames, height, width, c), 0..1, to latents (b, c, t, h, w), as ComfyUI's vae.encode.

    tile: side in pixels; None takes the largest that fits into free device memory.
    Raises NotEnoughMemory when even SMALLEST_TILE does not fit, ValueError for a tile below it and for images that
    the VAE cannot take.
    """
    check_tile(tile)
    support = vae_support(vae)
    if support.fallback_reason:
        return vae.encode(pixels)
    layers = support.encoder
    channels = channels_in(layers)
    check_images(pixels, 1, vae.spacial_compression_encode())
    pixels = vae.vae_encode_crop_pixels(pixels)[..., :channels]
    check_images(pixels, channels, vae.spacial_compression_encode())
    pixels = pixels.movedim(-1, 1)
    if pixels.ndim < 5:
        pixels = pixels.unsqueeze(2) if vae.not_video else pixels.movedim(1, 0).unsqueeze(0)
    bar, latents = comfy.utils.ProgressBar(1), []
    for index in range(pixels.shape[0]):
        report = _share(_reporter(bar), index, pixels.shape[0])
        video = encode_video(vae, layers, pixels[index : index + 1], tile, report)
        latents.append(video.to(vae.output_device, vae_output_dtype(vae)))
    return torch.cat(latents)


def empty_images(vae, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised IMAGE on the VAE's output device, or on the host where it is too large a tensor for that.

    Raises NotEnoughMemory where RAM runs out.
    """
    dtype = vae_output_dtype(vae)
    fits = math.prod(shape) * dtype.itemsize <= tensor_limit(vae.output_device)
    try:
        return torch.empty(shape, dtype=dtype, device=vae.output_device if fits else "cpu")
    except Exception as error:
        if is_host_out_of_memory(error):
            raise ram_ran_out(error) from error
        raise


def _stream(
    vae,
    samples: Tensor,
    to_pixels: Callable[[Tensor], Tensor],
    write: Write,
    tile: int | None,
    progress: Progress,
    gpus: int,
) -> None:
    layers = vae_support(vae).decoder
    with decode_workers(vae, gpus) as workers:
        for index in range(samples.shape[0]):

            def emit(frames: slice, rect: Rectangle, pixels: Tensor, index: int = index) -> None:
                rows, columns = rect.slices
                images = to_pixels(pixels[0].permute(1, 2, 3, 0).to(torch.float32, copy=True))
                write(OutputRegion(index, frames, rows, columns), images)

            report = _share(_reporter(progress), index, samples.shape[0])
            decode_video(vae, layers, samples[index : index + 1], tile, emit, report, workers)


def _stream_from_comfyui(vae, samples: Tensor, shape: tuple[int, ...], write: Write) -> None:
    images = vae.decode(samples)
    images = images if images.ndim == 5 else images.unsqueeze(1)
    if images.shape[:4] != shape or images.shape[-1] < 3:
        raise ValueError(
            f"The VAE made pictures of shape {tuple(images.shape)}, expected {(*shape, 3)}. Use its own decode node and"
            " Save Video."
        )
    for index, video in enumerate(images):
        frames, rows, columns = (slice(0, size) for size in video.shape[:3])
        write(OutputRegion(index, frames, rows, columns), video)


def _pixels_or_nan(vae, decoded: Tensor) -> Tensor:
    """Pixels 0..1, NaN where the VAE has overflowed: its clamp alone would make them white or black."""
    infinite = decoded.isinf()
    return vae.process_output(decoded).masked_fill_(infinite, torch.nan)


def _reporter(progress: Progress) -> Report:
    if progress is None:
        return lambda done, total: None
    return getattr(progress, "update_absolute", progress)


def _share(report: Report, index: int, count: int) -> Report:
    """Report the progress of video `index` as that of a batch of `count`."""
    return lambda done, total: report(index * total + done, count * total)
