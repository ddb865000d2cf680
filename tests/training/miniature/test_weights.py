"""The weights that are kept with the repository do what is said of them."""

from __future__ import annotations

import comfy.sd
import torch
from safetensors.torch import load_file

from training.miniature import WEIGHTS
from training.miniature.judge import held_out
from training.miniature.painter import paint
from training.miniature.vae_training import VAERecipe, psnr


def test_the_vae_gives_back_large_clips_that_it_was_not_trained_on():
    """In dB, of every frame, the first included."""
    from training.miniature.clip_vae import new_vae

    vae = new_vae(VAERecipe().width)
    vae.load_state_dict(load_file(WEIGHTS / "vae.safetensors"))
    (number,) = held_out(1)
    quality = psnr(vae, paint(number, 640, 352, 17)[None])
    assert quality.shape == (17,) and quality.min() > 36


def test_comfyui_gives_back_small_ones_with_it():
    vae = comfy.sd.VAE(sd=load_file(WEIGHTS / "vae.safetensors"), dtype=torch.float32)
    for number in held_out(1):
        clip = paint(number, 256, 144, 17)
        made = vae.decode(vae.encode(clip))[0].clamp(0, 1)
        assert (-10 * (made - clip).square().mean((1, 2, 3)).log10()).min() > 32


def test_latents_are_as_the_transformer_expects_them():
    from training.encoders import video_encoder
    from training.miniature.clip_vae import CHANNELS

    encode = video_encoder(comfy.sd.VAE(sd=load_file(WEIGHTS / "vae.safetensors"), dtype=torch.float32))
    latents = torch.stack([encode(paint(number, 256, 144, 17)) for number in held_out(4)])
    flat = latents.transpose(0, 1).flatten(1)
    assert flat.shape[0] == CHANNELS
    assert flat.mean(1).abs().max() < 1 and 0.3 < flat.std(1).min() and flat.std(1).max() < 2
