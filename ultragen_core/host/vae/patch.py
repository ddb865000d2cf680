"""The exact tiled Wan VAE for ComfyUI: decode in a stream, decode and encode as core's nodes call them."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import comfy.utils
import torch
from comfy.cli_args import args

from ...out_of_ram import is_host_out_of_memory
from ...vae.drain import Drain
from ...vae.geometry import Window
from ...vae.memory import tensor_limit
from ...vae.walk import channels_in
from ..compat import vae_output_dtype
from .retry import SMALLEST_TILE, ram_ran_out
from .run import Report, decode_video, encode_video
from .shapes import check_images, decoded_shape, picture_channels
from .support import known

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


def may_pin() -> bool:
    """Whether copies from a GPU may go through pinned memory, which ComfyUI's user may have turned off."""
    return not args.disable_pinned_memory


def check_tile(tile: int | None) -> None:
    """Raise ValueError unless `tile` is a side in pixels that decode and encode take; None is auto."""
    if tile is None:
        return
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < SMALLEST_TILE:
        raise ValueError(
            f"A tile must be at least {SMALLEST_TILE} pixels, got {tile}. Choose a larger one, or 0 (in Python None)"
            " for auto."
        )


@torch.no_grad()
def stream_decode(
    vae,
    samples: torch.Tensor,
    write: Write,
    tile: int | None = None,
    progress: Report | comfy.utils.ProgressBar | None = None,
) -> None:
    """Decode the latent (b, c, t, h, w) exactly, in tiles, handing every finished piece to `write(region, pixels)`.

    `pixels` is (frames, rows, columns, 3), float, 0..1, on the decode device, and the writer's to change; a fourth
    channel (alpha) is dropped. When memory runs out, all regions of that video come again, in smaller pieces. `tile` is
    a side in output pixels; None takes the largest that fits into free device memory. `progress` is a ComfyUI
    ProgressBar or called as progress(done, total). Raises NotEnoughMemory when even the smallest tile does not
    fit, ValueError for a tile below SMALLEST_TILE and for a latent that is not this VAE's.
    """
    check_tile(tile)
    shape = decoded_shape(vae, samples.shape)
    if picture_channels(vae) > 3:
        logging.warning("UltraGen: this VAE decodes to pictures with alpha, which a video file has not: it is dropped.")

    def write_rgb(region: Region, pixels: torch.Tensor) -> None:
        write(region, pixels[..., :3])

    if known(vae).refusal:
        _stream_from_core(vae, samples, shape, write_rgb)
    else:
        _stream(vae, samples, functools.partial(_pixels_or_nan, vae), write_rgb, tile, progress)


def _pixels_or_nan(vae, decoded: torch.Tensor) -> torch.Tensor:
    """Pixels 0..1, NaN where the VAE has overflowed: its clamp alone would make them white or black."""
    infinite = decoded.isinf()
    return vae.process_output(decoded).masked_fill_(infinite, torch.nan)


def _stream(
    vae,
    samples: torch.Tensor,
    to_pixels: Callable[[torch.Tensor], torch.Tensor],
    write: Write,
    tile: int | None,
    progress: Report | comfy.utils.ProgressBar | None,
) -> None:
    for index in range(samples.shape[0]):

        def emit(frames: slice, window: Window, pixels: torch.Tensor, index: int = index) -> None:
            rows, columns = (slice(span.start, span.stop) for span in (window.rows, window.columns))
            made = to_pixels(pixels[0].permute(1, 2, 3, 0).to(torch.float32, copy=True))
            write(Region(index, frames, rows, columns), made)

        report = _share(_reporter(progress), index, samples.shape[0])
        decode_video(vae, known(vae).decoder, samples[index : index + 1], tile, emit, report)


@torch.no_grad()
def decode(vae, samples: torch.Tensor, tile: int | None = None) -> torch.Tensor:
    """Latents to an IMAGE per video, (b, frames, height, width, c) on the VAE's output device, as core's vae.decode."""
    check_tile(tile)
    if getattr(samples, "is_nested", False):  # video and sound of one model: as core's node does
        samples = samples.unbind()[0]
    if known(vae).refusal:
        return vae.decode(samples)
    shape = (*decoded_shape(vae, samples.shape), picture_channels(vae))
    images = _empty_images(vae, shape)
    drain = Drain(pinned=may_pin())

    def write(region: Region, pixels: torch.Tensor) -> None:
        drain.copy(pixels, images[region])

    _stream(vae, samples, vae.process_output, write, tile, comfy.utils.ProgressBar(1))
    drain.finish()
    return images


@torch.no_grad()
def encode(vae, pixels: torch.Tensor, tile: int | None = None) -> torch.Tensor:
    """An IMAGE ([b,] frames, height, width, c) to latents (b, c, t, h, w), as core's vae.encode.

    Raises ValueError for images that the VAE cannot take.
    """
    check_tile(tile)
    if known(vae).refusal:
        return vae.encode(pixels)
    layers = known(vae).encoder
    channels = channels_in(layers)
    check_images(pixels, 1, vae.spacial_compression_encode())
    pixels = vae.vae_encode_crop_pixels(pixels)[..., :channels]
    check_images(pixels, channels, vae.spacial_compression_encode())
    pixels = pixels.movedim(-1, 1)
    if pixels.ndim < 5:
        pixels = pixels.unsqueeze(2) if vae.not_video else pixels.movedim(1, 0).unsqueeze(0)
    bar, made = comfy.utils.ProgressBar(1), []
    for index in range(pixels.shape[0]):
        report = _share(_reporter(bar), index, pixels.shape[0])
        latents = encode_video(vae, layers, pixels[index : index + 1], tile, report)
        made.append(latents.to(vae.output_device, vae_output_dtype(vae)))
    return torch.cat(made)


class ExactMethods:
    """What `tiled` puts before a VAE's class. Everything is looked up on the VAE itself, so that copies with another
    model or device use their own. Core's tile sizes are dropped: they decide how wrong core's result is, ours only how
    much memory it takes.
    """

    exact_tile: int | None = None

    def decode(self, samples_in, *core, **core_by_name):
        if refusal(self):
            return super().decode(samples_in, *core, **core_by_name)
        return decode(self, samples_in, self.exact_tile)

    def decode_tiled(self, samples, *core, **core_by_name):
        if refusal(self):
            return super().decode_tiled(samples, *core, **core_by_name)
        return decode(self, samples, self.exact_tile)

    def encode(self, pixel_samples, *core, **core_by_name):
        if refusal(self):
            return super().encode(pixel_samples, *core, **core_by_name)
        return encode(self, pixel_samples, self.exact_tile)

    def encode_tiled(self, pixel_samples, *core, **core_by_name):
        if refusal(self):
            return super().encode_tiled(pixel_samples, *core, **core_by_name)
        return encode(self, pixel_samples, self.exact_tile)


ExactMethods.exact_methods = ExactMethods  # by which vae_known tells them from another pack's


def tiled(vae, tile: int | None = None):
    """A copy of the VAE whose decode, decode_tiled, encode and encode_tiled are exact and tiled; same patcher.

    A VAE that is left to core, or to the pack that it is from, is returned as it is.
    """
    check_tile(tile)
    if known(vae).refusal:
        return vae
    exact = copy.copy(vae)
    exact.__class__ = _exact_class(type(vae))
    exact.exact_tile = tile
    return exact


@functools.cache
def _exact_class(base: type) -> type:
    return base if issubclass(base, ExactMethods) else type(f"Exact{base.__name__}", (ExactMethods, base), {})


def _empty_images(vae, shape: tuple[int, ...]) -> torch.Tensor:
    dtype = vae_output_dtype(vae)
    fits = math.prod(shape) * dtype.itemsize <= tensor_limit(vae.output_device)
    try:
        return torch.empty(shape, dtype=dtype, device=vae.output_device if fits else "cpu")
    except Exception as error:
        if is_host_out_of_memory(error):
            raise ram_ran_out(error) from error
        raise


def _stream_from_core(vae, samples: torch.Tensor, shape: tuple[int, ...], write: Write) -> None:
    images = vae.decode(samples)
    images = images if images.ndim == 5 else images.unsqueeze(1)
    if images.shape[:4] != shape or images.shape[-1] < 3:
        raise ValueError(
            f"The VAE made pictures of shape {tuple(images.shape)}, where {(*shape, 3)} was to be expected."
        )
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
