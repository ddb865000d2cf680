"""Prepares sampling: the flow shift of a model, an empty latent."""

from __future__ import annotations

import logging
import math

import comfy.ldm.wan.model
import comfy.model_management
import comfy.model_sampling
import torch

from ..plan.report import gib
from ..sizes import VideoSize, latent_shape, round_up
from .ram import free_ram
from .wan_model import diffusion_model

log = logging.getLogger(__name__)


def with_shift(model, shift: float):
    """A clone of `model` that samples flow matching with this shift, t = 1000 * sigma (like ComfyUI's
    ModelSamplingSD3).

    Raises ValueError for a model that does not sample flow matching.
    """
    _check_flow(model)

    class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    patched = model.clone()
    patched.add_object_patch("model_sampling", sampling)
    return patched


def _check_flow(model) -> None:
    """Raise ValueError for models that are not flow models; warn of flow models other than Wan."""
    is_patcher = hasattr(model, "get_model_object")
    if not (is_patcher and isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)):
        kind = type(model.model.diffusion_model if is_patcher else model).__name__
        raise ValueError(f"A flow shift needs a flow model such as Wan, got {kind}. Connect a Wan 2.1 or 2.2 model.")
    if not isinstance(diffusion_model(model.model), comfy.ldm.wan.model.WanModel):
        kind = type(diffusion_model(model.model)).__name__
        log.warning("UltraGen: shift and noise levels are meant for Wan models, but this one is %s.", kind)


def empty_latent(wanted: VideoSize, batch: int, vae=None) -> tuple[dict, VideoSize]:
    """A LATENT of zeros in the smallest possible size that holds `wanted`, and that size.

    vae: sets channels and ratios; None is Wan 2.1's 16 channels at 8x. Raises ValueError for an image VAE, or where the
    latent does not fit into memory.
    """
    channels, spatial, temporal = 16, 8, 4
    if vae is not None:
        channels, spatial = vae.latent_channels, vae.spacial_compression_encode()
        temporal = vae.temporal_compression_decode()
        if temporal is None:
            raise ValueError("A video latent needs a video VAE; the connected VAE is for images. Connect Wan's VAE.")
    size = round_up(wanted, spatial, temporal)
    shape = latent_shape(size, batch, channels, spatial, temporal)
    check_memory(shape, size)
    samples = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    return {"samples": samples, "downscale_ratio_spacial": spatial}, size


def check_memory(shape: tuple[int, ...], size: VideoSize) -> None:
    """Raise ValueError where a float32 latent of this shape does not fit into free memory."""
    needed = 4 * math.prod(shape)
    device = comfy.model_management.intermediate_device()
    free = free_ram() if device.type == "cpu" else comfy.model_management.get_free_memory(device)
    if needed > free:
        raise ValueError(
            f"A latent of {size}, batch of {shape[0]}, takes {gib(needed)} of memory, but {gib(free)} are free. Choose"
            " a smaller size, fewer frames or a smaller batch."
        )
