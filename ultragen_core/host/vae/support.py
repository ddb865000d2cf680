"""Decides which VAEs run in exact tiles: those whose layers are known and whose results agree with ComfyUI's."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import comfy.model_management as mm
import comfy.sd
import torch
from torch import Tensor, nn

from ...out_of_ram import is_host_out_of_memory
from ...rectangle import Rectangle
from ...vae.geometry import output_size
from ...vae.layers import Layer
from ...vae.parse import UnsupportedLayer, channels_in, channels_out, decoder_layers, encoder_layers
from ..memory import NotEnoughMemory, is_out_of_memory
from .gpus import on_device
from .run import decode_video, encode_video

TRIAL_LATENTS, TRIAL_FRAMES, TRIAL_TILE = (2, 4, 6), 5, 3  # the tile in latents: four of them
METHODS = ("decode", "decode_tiled", "encode", "encode_tiled")  # what ComfyUI's nodes call

log = logging.getLogger(__name__)


class VAESupport(NamedTuple):
    """A VAE's layers. `fallback_reason`: why it is left to ComfyUI's own decode and encode; empty where it is not."""

    decoder: Sequence[Layer] = ()
    encoder: Sequence[Layer] = ()
    fallback_reason: str = ""


class Disagreement(Exception):
    """The trial's results differ or cannot be compared; the message says why."""


# By dtype too, because float16 overflows where others do not.
_examined: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, VAESupport]] = weakref.WeakKeyDictionary()


def vae_support(vae) -> VAESupport:
    """Parse the VAE and compare decode and encode with ComfyUI's on a few latents, once per model and dtype.

    Any failure of the trial is a fallback reason, except an interruption and NotEnoughMemory, which are raised; the
    next call then tries again. Raises ValueError where `vae` is not a VAE.
    """
    require_vae(vae)
    if replaced_method(vae):
        return VAESupport(fallback_reason=f"Another node pack has replaced its {replaced_method(vae)}.")
    vae.throw_exception_if_invalid()
    by_dtype, dtype = _examined.setdefault(vae.first_stage_model, {}), vae.vae_dtype
    if dtype not in by_dtype:
        by_dtype[dtype] = examine(vae)
        if by_dtype[dtype].fallback_reason:
            log.warning(
                "UltraGen: this VAE is left to ComfyUI's own decode and encode. %s", by_dtype[dtype].fallback_reason
            )
    return by_dtype[dtype]


def fallback_reason(vae) -> str:
    """Why this VAE is left to ComfyUI's own decode and encode; empty where the exact tiles take over.

    The first call for a model and dtype runs a small decode and encode on the VAE's device. Raises as vae_support.
    """
    return vae_support(vae).fallback_reason


def require_vae(vae) -> None:
    """Raise ValueError unless `vae` is a VAE of ComfyUI."""
    if not hasattr(vae, "first_stage_model"):
        raise ValueError(f"A VAE is needed here, got {type(vae).__name__}. Connect Load VAE with one of Wan's VAEs.")


def replaced_method(vae) -> str:
    """The first of METHODS that is neither ComfyUI's nor, on a VAE from `exact_vae`, this pack's; usually empty."""
    owner = getattr(type(vae), "exact_methods", comfy.sd.VAE)
    for name in METHODS:
        if getattr(getattr(vae, name, None), "__func__", None) is not getattr(owner, name):
            return name
    return ""


@torch.no_grad()
def examine(vae) -> VAESupport:
    """vae_support without its cache, for a VAE with ComfyUI's own methods."""
    try:
        return _trial(vae)
    except (mm.InterruptProcessingException, NotEnoughMemory):
        raise
    except UnsupportedLayer as error:
        return VAESupport(fallback_reason=f"Its layers are not the Wan VAE's. {error}")
    except Disagreement as error:
        return VAESupport(fallback_reason=str(error))
    except Exception as error:  # whatever a VAE that only looks like Wan's may raise
        if is_out_of_memory(error) or is_host_out_of_memory(error):
            raise NotEnoughMemory(
                "There is not enough memory to test the VAE on a few latents. Unload other models (or close other"
                " programs) and run this node again."
            ) from error
        reason = str(error).partition("\n")[0]
        return VAESupport(fallback_reason=f"A small test of it failed: {type(error).__name__}: {reason}")


def _trial(vae) -> VAESupport:
    layers = VAESupport(decoder_layers(vae.first_stage_model), encoder_layers(vae.first_stage_model))
    decoded, encoded = channels_out(layers.decoder), channels_in(layers.encoder)
    if decoded != encoded:
        raise UnsupportedLayer(f"Its decoder makes {decoded} channels, its encoder takes {encoded}.")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels_in(layers.decoder), *TRIAL_LATENTS, generator=generator)
    size = output_size(layers.decoder, TRIAL_LATENTS[1:])
    pixels = torch.rand(1, encoded, TRIAL_FRAMES, *size, generator=generator)
    with on_device(vae.device):
        errors = {
            "decode": decode_error(vae, layers.decoder, latents),
            "encode": encode_error(vae, layers.encoder, pixels),
        }
    for name, error in errors.items():
        # A wrong layer or halo shows as tens of percent, the dtype's own rounding does not.
        if not error < (1e-3 if vae.vae_dtype == torch.float32 else 5e-2):
            raise Disagreement(f"Its {name} in tiles differs from ComfyUI's by {error:.1e} on a small test.")
    return layers


def decode_error(vae, layers: Sequence[Layer], z: Tensor) -> float:
    """Relative L2 distance of the tiled decode of z (1, c, *TRIAL_LATENTS) from ComfyUI's. Raises Disagreement."""
    size = output_size(layers, TRIAL_LATENTS[1:])
    tiled = torch.empty(1, channels_out(layers), TRIAL_FRAMES, *size, device=vae.device)

    def emit(frames: slice, rect: Rectangle, pixels: Tensor) -> None:
        rows, columns = rect.slices
        tiled[:, :, frames, rows, columns] = pixels.float()

    decode_video(vae, layers, z, TRIAL_TILE * size[0] // TRIAL_LATENTS[1], emit, _no_report)
    return _distance("decode", tiled, vae.first_stage_model.decode(z.to(vae.device, vae.vae_dtype)))


def encode_error(vae, layers: Sequence[Layer], pixels: Tensor) -> float:
    """Relative L2 distance of the tiled encode of pixels (1, c, TRIAL_FRAMES, height, width), 0..1, from ComfyUI's.

    Raises Disagreement.
    """
    tiled = encode_video(vae, layers, pixels, TRIAL_TILE * pixels.shape[-2] // TRIAL_LATENTS[1], _no_report)
    whole = vae.first_stage_model.encode(vae.process_input(pixels).to(vae.device, vae.vae_dtype))
    return _distance("encode", tiled, whole)


def _no_report(done: int, total: int) -> None:
    pass


def _distance(name: str, tiled: Tensor, whole: Tensor) -> float:
    if tiled.shape != whole.shape:
        raise Disagreement(f"Its {name} gives {tuple(whole.shape)} in a small test, in tiles {tuple(tiled.shape)}.")
    dtype, whole, tiled = whole.dtype, whole.to(tiled.device, torch.float32), tiled.float()
    if not whole.isfinite().all():
        raise Disagreement(
            f"Its {name} gives NaN or infinite values in a small test, with tiles or without: its weights are damaged"
            f" or overflow in {str(dtype).removeprefix('torch.')}."
        )
    return ((tiled - whole).norm() / whole.norm().clamp_min(1e-30)).item()
