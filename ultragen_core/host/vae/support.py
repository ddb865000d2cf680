"""Which VAEs the exact tiles may take over: those whose layers are understood and whose result agrees with core's."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import comfy.model_management as mm
import comfy.sd
import torch

from ...out_of_ram import is_host_out_of_memory
from ...vae.geometry import Window, output_size
from ...vae.layers import Layer
from ...vae.walk import UnknownLayer, channels_in, channels_out, decoder_layers, encoder_layers
from ..memory import NotEnoughMemory, is_out_of_memory
from .run import decode_video, encode_video, on_device

CANARY_LATENTS, CANARY_FRAMES, CANARY_TILE = (2, 4, 6), 5, 3  # the tile in latents: four of them
METHODS = ("decode", "decode_tiled", "encode", "encode_tiled")  # what core's nodes call


class Known(NamedTuple):
    """A VAE's layers; `refusal` says why core's own decode and encode must do, and is empty when they need not."""

    decoder: Sequence[Layer] = ()
    encoder: Sequence[Layer] = ()
    refusal: str = ""


class Disagreement(Exception):
    """The test's results cannot be compared; the message says why."""


# What is known holds for the model in one dtype: float16 overflows where others do not.
_examined: weakref.WeakKeyDictionary[torch.nn.Module, dict[torch.dtype, Known]] = weakref.WeakKeyDictionary()


def known(vae) -> Known:
    """Read the VAE and compare both directions with core's on a few latents, once per model and dtype.

    An interruption and NotEnoughMemory are raised and nothing is remembered; any other failure is a refusal.
    """
    require_vae(vae)
    if replaced_method(vae):
        return Known(refusal=f"Its {replaced_method(vae)} is another node pack's, which is left to do it.")
    vae.throw_exception_if_invalid()
    found, key = _examined.setdefault(vae.first_stage_model, {}), vae.vae_dtype
    if key not in found:
        found[key] = _examine(vae)
        if found[key].refusal:
            logging.warning("UltraGen: this VAE is left to ComfyUI's own decode and encode. %s", found[key].refusal)
    return found[key]


def require_vae(vae) -> None:
    if not hasattr(vae, "first_stage_model"):
        raise ValueError(f"A VAE is needed here, got {type(vae).__name__}. Connect Load VAE with one of Wan's VAEs.")


def replaced_method(vae) -> str:
    """The first of METHODS that is not ComfyUI's (or, on a VAE that `tiled` made, this pack's); usually empty."""
    owner = getattr(type(vae), "exact_methods", comfy.sd.VAE)
    for name in METHODS:
        if getattr(getattr(vae, name, None), "__func__", None) is not getattr(owner, name):
            return name
    return ""


@torch.no_grad()
def _examine(vae) -> Known:
    try:
        return _compare(vae)
    except (mm.InterruptProcessingException, NotEnoughMemory):
        raise
    except UnknownLayer as error:
        return Known(refusal=f"Its layers are not the Wan VAE's. {error}")
    except Disagreement as error:
        return Known(refusal=str(error))
    except Exception as error:  # whatever a VAE that only looks like Wan's may raise
        if is_out_of_memory(error) or is_host_out_of_memory(error):
            raise NotEnoughMemory(
                "There is not enough memory to test the VAE on a few latents. Unload other models (or close other"
                " programs) and run this node again."
            ) from error
        reason = str(error).partition("\n")[0]
        return Known(refusal=f"A small test of it failed: {type(error).__name__}: {reason}")


def _compare(vae) -> Known:
    found = Known(decoder_layers(vae.first_stage_model), encoder_layers(vae.first_stage_model))
    made, taken = channels_out(found.decoder), channels_in(found.encoder)
    if made != taken:
        raise UnknownLayer(f"Its decoder makes {made} channels, its encoder takes {taken}.")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels_in(found.decoder), *CANARY_LATENTS, generator=generator)
    size = output_size(found.decoder, CANARY_LATENTS[1:])
    pixels = torch.rand(1, taken, CANARY_FRAMES, *size, generator=generator)
    with on_device(vae):
        errors = {"decode": _decode_error(vae, found, latents), "encode": _encode_error(vae, found, pixels)}
    for name, error in errors.items():
        # A wrong layer or halo shows as tens of percent, the dtype's own rounding does not.
        if not error < (1e-3 if vae.vae_dtype == torch.float32 else 5e-2):
            raise Disagreement(f"Its {name} in tiles differs from ComfyUI's by {error:.1e} on a small test.")
    return found


def _decode_error(vae, found: Known, z: torch.Tensor) -> float:
    size = output_size(found.decoder, CANARY_LATENTS[1:])
    ours = torch.empty(1, channels_out(found.decoder), CANARY_FRAMES, *size, device=vae.device)

    def emit(frames: slice, window: Window, pixels: torch.Tensor) -> None:
        rows, columns = window.inside(Window.whole(size))
        ours[:, :, frames, rows, columns] = pixels.float()

    decode_video(vae, found.decoder, z, CANARY_TILE * size[0] // CANARY_LATENTS[1], emit, _silent)
    return _distance("decode", ours, vae.first_stage_model.decode(z.to(vae.device, vae.vae_dtype)))


def _encode_error(vae, found: Known, pixels: torch.Tensor) -> float:
    tile = CANARY_TILE * pixels.shape[-2] // CANARY_LATENTS[1]
    ours = encode_video(vae, found.encoder, pixels, tile, _silent)
    return _distance(
        "encode", ours, vae.first_stage_model.encode(vae.process_input(pixels).to(vae.device, vae.vae_dtype))
    )


def _silent(done: int, total: int) -> None:
    pass


def _distance(name: str, ours: torch.Tensor, core: torch.Tensor) -> float:
    """Relative; raises Disagreement where there is none."""
    if ours.shape != core.shape:
        raise Disagreement(f"Its {name} makes {tuple(core.shape)} of a small test, the tiles {tuple(ours.shape)}.")
    dtype, core, ours = core.dtype, core.to(ours.device, torch.float32), ours.float()
    if not core.isfinite().all():
        raise Disagreement(
            f"Its {name} makes NaN or infinite values of a small test, with tiles or without: its weights are damaged"
            f" or overflow in {str(dtype).removeprefix('torch.')}."
        )
    return ((ours - core).norm() / core.norm().clamp_min(1e-30)).item()
