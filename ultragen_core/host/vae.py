"""The exact tiled Wan VAE for ComfyUI: decode in a stream, decode and encode as core's nodes call them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import comfy.utils
import torch

from ..vae.drain import Drain
from ..vae.geometry import Window
from .vae_known import known
from .vae_run import SMALLEST_TILE, Report, decode_video, encode_video

__all__ = ["SMALLEST_TILE", "Region", "decode", "decoded_shape", "encode", "refusal", "stream_decode", "tiled"]


class Region(NamedTuple):
    """A finished piece of the output: one video of the batch, and slices of its frames, rows and columns."""

    batch: int
    frames: slice
    rows: slice
    columns: slice


Write = Callable[[Region, torch.Tensor], None]


def refusal(vae) -> str:
    """Why this VAE is left to core's own decode and encode; empty when the exact tiles take over."""
    return known(vae).refusal


def decoded_shape(vae, latent_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(batch, frames, height, width) of what a latent of shape (b, c, t, h, w) or (b, c, h, w) decodes to.

    Raises ValueError where latent and VAE do not belong together.
    """
    if latent_shape[1] != vae.latent_channels:
        raise ValueError(
            f"The VAE must be the model's: the latent has {latent_shape[1]} channels, the VAE takes"
            f" {vae.latent_channels}. Latents of 16 channels need Wan 2.1's VAE, those of 48 (the 5B model) Wan 2.2's."
        )
    ratio, rows, columns = (
        vae.upscale_ratio if isinstance(vae.upscale_ratio, tuple) else (None, *[vae.upscale_ratio] * 2)
    )
    frames = ratio(latent_shape[2]) if ratio and len(latent_shape) == 5 else 1
    return latent_shape[0], frames, latent_shape[-2] * rows, latent_shape[-1] * columns


@torch.no_grad()
def stream_decode(
    vae,
    samples: torch.Tensor,
    write: Write,
    tile: int | None = None,
    progress: Report | comfy.utils.ProgressBar | None = None,
) -> None:
    """Decode the latent (b, c, t, h, w) exactly, in tiles, handing every finished piece to `write(region, pixels)`.

    `pixels` is (frames, rows, columns, 3), float, 0..1, on the decode device, and the writer's to change. When memory
    runs out, all regions of that video come again, in smaller pieces. `tile` is a side in output pixels; None takes the
    largest that fits into free device memory. `progress` is a ComfyUI ProgressBar or called as progress(done, total).
    Raises vae_run.NotEnoughMemory when even the smallest tile does not fit, ValueError for a tile below SMALLEST_TILE.
    """
    if tile is not None and tile < SMALLEST_TILE:
        raise ValueError(
            f"A tile must be at least {SMALLEST_TILE} pixels, got {tile}. Choose a larger one, or None for auto."
        )
    if known(vae).refusal:
        _stream_from_core(vae, samples, write)
        return
    for index in range(samples.shape[0]):

        def emit(frames: slice, window: Window, pixels: torch.Tensor, index: int = index) -> None:
            rows, columns = (slice(span.start, span.stop) for span in (window.rows, window.columns))
            made = vae.process_output(pixels[0].permute(1, 2, 3, 0).to(torch.float32, copy=True))
            write(Region(index, frames, rows, columns), made)

        report = _share(_reporter(progress), index, samples.shape[0])
        decode_video(vae, known(vae).decoder, samples[index : index + 1], tile, emit, report)


def decode(vae, samples: torch.Tensor, tile: int | None = None) -> torch.Tensor:
    """Latents to an IMAGE per video, (b, frames, height, width, 3) on the VAE's output device, as core's vae.decode."""
    if known(vae).refusal:
        return vae.decode(samples)
    shape = (*decoded_shape(vae, samples.shape), vae.output_channels)
    images = torch.empty(shape, dtype=_output_dtype(vae), device=vae.output_device)
    drain = Drain()

    def write(region: Region, pixels: torch.Tensor) -> None:
        drain.copy(pixels, images[region])

    stream_decode(vae, samples, write, tile, comfy.utils.ProgressBar(1))
    drain.finish()
    return images


@torch.no_grad()
def encode(vae, pixels: torch.Tensor, tile: int | None = None) -> torch.Tensor:
    """An IMAGE ([b,] frames, height, width, 3) to latents (b, c, t, h, w), as core's vae.encode."""
    if known(vae).refusal:
        return vae.encode(pixels)
    pixels = vae.vae_encode_crop_pixels(pixels).movedim(-1, 1)
    if pixels.ndim < 5:
        pixels = pixels.unsqueeze(2) if vae.not_video else pixels.movedim(1, 0).unsqueeze(0)
    bar, made = comfy.utils.ProgressBar(1), []
    for index in range(pixels.shape[0]):
        report = _share(_reporter(bar), index, pixels.shape[0])
        latents = encode_video(vae, known(vae).encoder, pixels[index : index + 1], tile, report)
        made.append(latents.to(vae.output_device, _output_dtype(vae)))
    return torch.cat(made)


def tiled(vae, tile: int | None = None):
    """A copy of the VAE whose decode, decode_tiled, encode and encode_tiled are exact and tiled; same patcher.

    Core's nodes call these four. Core's own tile sizes are dropped: they decide how wrong the result is, ours only how
    much memory it takes.
    """
    exact = copy.copy(vae)

    def exact_decode(samples_in: torch.Tensor, *_, **__) -> torch.Tensor:
        return decode(vae, samples_in, tile)

    def exact_encode(pixel_samples: torch.Tensor, *_, **__) -> torch.Tensor:
        return encode(vae, pixel_samples, tile)

    if not known(vae).refusal:
        exact.decode = exact.decode_tiled = exact_decode
        exact.encode = exact.encode_tiled = exact_encode
    return exact


def _stream_from_core(vae, samples: torch.Tensor, write: Write) -> None:
    images = vae.decode(samples)
    images = images if images.ndim == 5 else images.unsqueeze(1)
    for index, video in enumerate(images):
        frames, rows, columns = (slice(0, size) for size in video.shape[:3])
        write(Region(index, frames, rows, columns), video)


def _reporter(progress: Report | comfy.utils.ProgressBar | None) -> Report:
    if progress is None:
        return lambda done, total: None
    return getattr(progress, "update_absolute", progress)


def _share(report: Report, index: int, count: int) -> Report:
    """The progress of one video as that of a batch of them."""
    return lambda done, total: report(index * total + done, count * total)


def _output_dtype(vae) -> torch.dtype:
    return vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32
