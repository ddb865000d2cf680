"""What sampling starts from: the flow shift of a model, an empty latent."""

from __future__ import annotations

import comfy.model_management
import comfy.model_sampling
import torch

from ..sizes import VideoSize, latent_shape, round_up


def with_shift(model, shift: float):
    """A clone of `model` that samples flow matching with this shift, t = 1000 * sigma (as core's ModelSamplingSD3)."""

    class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    patched = model.clone()
    patched.add_object_patch("model_sampling", sampling)
    return patched


def empty_latent(wanted: VideoSize, batch: int, vae=None) -> tuple[dict, VideoSize]:
    """A LATENT of zeros in the smallest possible size that holds `wanted`, and that size.

    vae: sets channels and ratios; None is Wan 2.1's 16 channels at 8x.
    """
    channels, spatial, temporal = 16, 8, 4
    if vae is not None:
        channels, spatial = vae.latent_channels, vae.spacial_compression_encode()
        temporal = vae.temporal_compression_decode()
        if temporal is None:
            raise ValueError("An UltraGen latent is a video's, the VAE connected is for images. Connect Wan's VAE.")
    size = round_up(wanted, spatial, temporal)
    shape = latent_shape(size, batch, channels, spatial, temporal)
    samples = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    return {"samples": samples, "downscale_ratio_spacial": spatial}, size
