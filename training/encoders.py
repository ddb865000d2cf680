"""ComfyUI's VAE and text encoder, as the cache takes them."""

from __future__ import annotations

from pathlib import Path

import comfy.latent_formats
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from training.miniature.text import word_vectors
from ultragen_core.host.vae.exact import encode

from .cache import Encode, EncodeText

WORDS = "words"


def latent_format(channels: int) -> comfy.latent_formats.LatentFormat:
    """How the transformer takes latents of so many channels."""
    return comfy.latent_formats.Wan22() if channels == 48 else comfy.latent_formats.Wan21()


def load_vae(path: Path) -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


def video_encoder(vae: comfy.sd.VAE) -> Encode:
    """The exact encode, in tiles that fit."""

    def run(clip: Tensor) -> Tensor:
        latent = encode(vae, clip)
        return latent_format(latent.shape[1]).process_in(latent)[0]

    return run


def text_encoder(name: str) -> EncodeText:
    """name: a UMT5-XXL file; "words" stands in for it with one fixed random vector a word."""
    if name == WORDS:
        return word_vectors
    clip = comfy.sd.load_clip([name], clip_type=comfy.sd.CLIPType.WAN)

    @torch.no_grad()
    def run(caption: str) -> Tensor:
        return clip.encode_from_tokens(clip.tokenize(caption))[0]

    return run
