"""A tiny SeedVR2: random weights of ComfyUI's own classes, and loaders for them.

ComfyUI knows two sizes of SeedVR2's model and one of its VAE, all too large to generate. It reads these sizes from
constants and not from the file. So the loaders here replace the constants while ComfyUI's own loaders run; everything
after them is ComfyUI's: classes, sampling, encode, decode.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from unittest.mock import patch

import torch
from torch import Generator, Tensor

# As `detect_unet_config` in comfy/model_detection.py returns it for the 3B model, which has 32 layers of 2560 channels
# in 20 heads. The last three keep ComfyUI's defaults there: 10 layers, 128 and 128 channels.
CONFIG = {
    "image_model": "seedvr2", "vid_dim": 48, "heads": 2, "num_layers": 2, "norm_eps": 1e-5, "mlp_type": "swiglu",
    "vid_out_norm": True, "mm_layers": 1, "head_dim": 24, "rope_dim": 24,
}  # fmt: skip
VAE_WIDTHS = (32, 32, 32, 32)  # instead of (128, 256, 512, 512); group norms have 32 groups


def exists() -> bool:
    """Whether this ComfyUI has SeedVR2; 0.3.75 lacks it."""
    return find_spec("comfy.ldm.seedvr") is not None


def model(generator: Generator) -> dict[str, Tensor]:
    import comfy.ops
    from comfy.ldm.seedvr.model import NaDiT

    return _random(NaDiT(**CONFIG, operations=comfy.ops.disable_weight_init), generator)


def vae(generator: Generator) -> dict[str, Tensor]:
    from comfy.ldm.seedvr.vae import VideoAutoencoderKLWrapper

    with _narrow():
        return _random(VideoAutoencoderKLWrapper(), generator)


def load_model(path: str):
    """Return a ModelPatcher, as ComfyUI's Load Diffusion Model does."""
    import comfy.model_detection
    import comfy.sd

    with patch.object(comfy.model_detection, "detect_unet_config", lambda *args, **settings: dict(CONFIG)):
        return comfy.sd.load_diffusion_model(path)


def load_vae(path: str):
    """Return a VAE, as ComfyUI's Load VAE does."""
    import comfy.sd
    import comfy.utils

    with _narrow():
        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(path))


def _narrow():
    return patch("comfy.ldm.seedvr.vae.BYTEDANCE_BLOCK_OUT_CHANNELS", VAE_WIDTHS)


def _random(module: torch.nn.Module, generator: Generator) -> dict[str, Tensor]:
    return {key: _weight(key, tensor, generator) for key, tensor in module.state_dict().items()}


def _weight(key: str, tensor: Tensor, generator: Generator) -> Tensor:
    if key.endswith("freqs"):  # computed, not trained
        return tensor
    if tensor.ndim == 1 and key.endswith("weight"):
        return torch.ones_like(tensor)
    noise = torch.randn(tensor.shape, generator=generator)
    return 0.1 * noise if tensor.ndim == 1 else noise / math.sqrt(math.prod(tensor.shape[1:]))
