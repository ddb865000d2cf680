"""The size that a latent decodes to, and errors for latents and images that a VAE cannot take."""

from __future__ import annotations

import torch

from ...vae.geometry import output_size
from ...vae.layers import Layer
from ...vae.parse import channels_in, channels_out, decoder_layers
from .support import require_vae

PICTURE_CHANNELS = (3, 4)  # RGB, RGBA


def decoded_shape(vae, latent_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(batch, frames, height, width) that a latent of shape (b, c, t, h, w) or (b, c, h, w) decodes to.

    Does not run the VAE. Raises ValueError where the latent is not this VAE's or the VAE does not decode to pictures.
    """
    require_vae(vae)
    layers = _layers(vae)
    channels = picture_channels(vae)
    if vae.latent_dim == 1 or channels not in PICTURE_CHANNELS:
        raise ValueError(
            f"A VAE whose output is a picture of 3 or 4 channels is needed, but this one makes {channels}. Connect Wan"
            " 2.1's VAE, or for the 5B model Wan 2.2's. For another VAE, use the decode node of the pack it comes from."
        )
    _check_latent_shape(latent_shape, channels_in(layers) if layers else vae.latent_channels, vae.latent_dim)
    ratio, rows, columns = (
        vae.upscale_ratio if isinstance(vae.upscale_ratio, tuple) else (None, *[vae.upscale_ratio] * 2)
    )
    frames = ratio(latent_shape[2]) if ratio and len(latent_shape) == 5 else 1
    size = latent_shape[-2] * rows, latent_shape[-1] * columns
    return latent_shape[0], frames, *(output_size(layers, latent_shape[-2:]) if layers else size)


def picture_channels(vae) -> int:
    """Channels of the pictures that the VAE decodes to."""
    layers = _layers(vae)
    return channels_out(layers) if layers else vae.output_channels


def check_images(pixels: torch.Tensor, channels: int, unit: int) -> None:
    """Raise ValueError for images ([b,] frames, height, width, c) that cannot be encoded.

    channels: the least that the VAE takes. unit: pixels a side that one latent pixel stands for.
    """
    shape = tuple(pixels.shape)
    if len(shape) not in (4, 5) or min(shape) < 1 or min(shape[-3:-1]) < unit:
        raise ValueError(
            f"Images to encode must be (frames, height, width, channels) with sides of at least {unit} pixels, got"
            f" {shape}."
        )
    if shape[-1] < channels:
        raise ValueError(f"The VAE encodes images of {channels} channels, got {shape[-1]}. Convert them to RGB first.")


def _layers(vae) -> list[Layer]:
    """The decoder's layers; empty for a VAE that is not Wan's."""
    try:
        return decoder_layers(vae.first_stage_model)
    except (TypeError, AttributeError):
        return []


def _check_latent_shape(shape: tuple[int, ...], channels: int, dims: int) -> None:
    if len(shape) != dims + 2 and not (dims == 2 and len(shape) == 5):
        axes = "batch, channels, frames, rows, columns" if dims == 3 else "batch, channels, rows, columns"
        raise ValueError(
            f"This VAE takes latents of {dims + 2} dimensions ({axes}), got {len(shape)}: {tuple(shape)}."
            " Connect a latent of the VAE's own model; for a video, make it with UltraGen Empty Latent."
        )
    if shape[1] != channels:
        raise ValueError(
            f"The VAE must be the model's: the latent has {shape[1]} channels, but the VAE takes {channels}."
            " Connect Wan 2.1's VAE for 16 channels, Wan 2.2's for 48 (the 5B model)."
        )
    if min(shape) < 1:
        raise ValueError(
            f"The latent is empty, its shape is {tuple(shape)}. Connect one of at least one frame and one pixel."
        )
