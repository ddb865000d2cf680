"""Which VAEs the exact tiles may take over: those whose layers are understood and whose result agrees with core's."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..vae.geometry import Window, output_size
from ..vae.layers import Layer
from ..vae.walk import UnknownLayer, decoder_layers, encoder_layers
from .vae_run import decode_video, encode_video

CANARY_LATENTS, CANARY_FRAMES, CANARY_TILE = (2, 4, 6), 5, 3  # the tile in latents: four of them


class Known(NamedTuple):
    """A VAE's layers; `refusal` says why core's own decode and encode must do, and is empty when they need not."""

    decoder: Sequence[Layer] = ()
    encoder: Sequence[Layer] = ()
    refusal: str = ""


_examined: weakref.WeakKeyDictionary[torch.nn.Module, Known] = weakref.WeakKeyDictionary()


def known(vae) -> Known:
    """Read the VAE and compare both directions with core's on a few latents: once per VAE."""
    vae.throw_exception_if_invalid()
    model = vae.first_stage_model
    if model not in _examined:
        _examined[model] = _examine(vae)
        if _examined[model].refusal:
            logging.warning(
                "UltraGen: this VAE is left to ComfyUI's own decode and encode. %s", _examined[model].refusal
            )
    return _examined[model]


@torch.no_grad()
def _examine(vae) -> Known:
    try:
        found = Known(decoder_layers(vae.first_stage_model), encoder_layers(vae.first_stage_model))
    except UnknownLayer as error:
        return Known(refusal=f"Its layers are not the Wan VAE's. {error}")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, found.decoder[0].conv.in_channels, *CANARY_LATENTS, generator=generator)
    size = output_size(found.decoder, CANARY_LATENTS[1:])
    pixels = torch.rand(1, vae.output_channels, CANARY_FRAMES, *size, generator=generator)
    for name, error in (("decode", _decode_error(vae, found, latents)), ("encode", _encode_error(vae, found, pixels))):
        # A wrong layer or halo shows as tens of percent, the dtype's own rounding does not.
        if not error < (1e-3 if vae.vae_dtype == torch.float32 else 5e-2):
            return Known(refusal=f"Its {name} in tiles differs from ComfyUI's by {error:.1e} on a small test.")
    return found


def _decode_error(vae, found: Known, z: torch.Tensor) -> float:
    size = output_size(found.decoder, CANARY_LATENTS[1:])
    ours = torch.empty(1, vae.output_channels, CANARY_FRAMES, *size, device=vae.device)

    def emit(frames: slice, window: Window, pixels: torch.Tensor) -> None:
        rows, columns = window.inside(Window.whole(size))
        ours[:, :, frames, rows, columns] = pixels.float()

    decode_video(vae, found.decoder, z, CANARY_TILE * size[0] // CANARY_LATENTS[1], emit, _silent)
    return _distance(ours, vae.first_stage_model.decode(z.to(vae.device, vae.vae_dtype)))


def _encode_error(vae, found: Known, pixels: torch.Tensor) -> float:
    tile = CANARY_TILE * pixels.shape[-2] // CANARY_LATENTS[1]
    ours = encode_video(vae, found.encoder, pixels, tile, _silent)
    return _distance(ours, vae.first_stage_model.encode(vae.process_input(pixels).to(vae.device, vae.vae_dtype)))


def _silent(done: int, total: int) -> None:
    pass


def _distance(ours: torch.Tensor, core: torch.Tensor) -> float:
    core = core.to(ours.device, torch.float32)
    return ((ours.float() - core).norm() / core.norm()).item() if ours.shape == core.shape else float("inf")
