"""The miniature's VAE is ComfyUI's, over whole clips."""

from __future__ import annotations

import comfy.latent_formats
import pytest
import torch
from helpers.support import relative_error, seeded


@pytest.fixture(scope="module")
def vae():
    """With weights that make every part count."""
    from training.miniature.clip_vae import new_vae

    torch.manual_seed(0)
    vae = new_vae(8)
    for parameter in vae.parameters():
        with torch.no_grad():
            parameter += 0.1 * torch.randn_like(parameter)
    return vae.requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_whole_clips_give_what_comfyuis_chunks_give(vae, frames):
    from training.miniature.clip_vae import decode, encode

    clips = seeded(2, 3, frames, 32, 48)
    mean, logvar = encode(vae, clips)
    assert mean.shape == logvar.shape == (2, 16, (frames + 3) // 4, 4, 6)
    assert relative_error(mean, vae.encode(clips)) < 5e-6
    assert relative_error(decode(vae, mean), vae.decode(mean)) < 5e-6


def test_a_new_vae_is_what_it_is_without_its_branches():
    from training.miniature.clip_vae import decode, encode, new_vae

    vae, clips = new_vae(8), seeded(1, 3, 5, 32, 32)
    with torch.no_grad():
        for coder, x in ((encode, clips), (decode, seeded(1, 16, 2, 4, 4))):
            whole, skeleton = (coder(vae, x, branches) for branches in (True, False))
            pairs = zip(whole, skeleton, strict=True) if coder is encode else [(whole, skeleton)]
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_folding_changes_the_latents_and_not_the_pictures(vae):
    """Latents get the means and deviations that ComfyUI takes away again from those of Wan 2.1."""
    from training.miniature.clip_vae import decode, encode, folded, new_vae

    clips = seeded(4, 3, 9, 32, 32)
    mean, logvar = encode(vae, clips)
    deviation, middle = torch.std_mean(mean.transpose(0, 1).flatten(1), dim=1)
    other = new_vae(8).requires_grad_(False)
    other.load_state_dict(folded(vae, middle, deviation))
    made, made_logvar = encode(other, clips)
    normal = comfy.latent_formats.Wan21().process_in(made).transpose(0, 1).flatten(1)
    assert torch.allclose(normal.mean(1), torch.zeros(16), atol=1e-4)
    assert torch.allclose(normal.std(1), torch.ones(16), atol=1e-4)
    scale = (0.5 * (made_logvar - logvar)).exp().mean((0, 2, 3, 4))
    assert torch.allclose(scale, comfy.latent_formats.Wan21().latents_std.flatten() / deviation, rtol=1e-4)
    assert relative_error(decode(other, made), decode(vae, mean)) < 1e-5
