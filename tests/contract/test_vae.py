"""comfy.sd.VAE and comfy.ldm.wan.vae: what the exact tiles call, replace and read."""

from __future__ import annotations

import inspect

import comfy.sd
import pytest
import torch
from comfy.ldm.wan import vae2_2
from helpers.signatures import lacking, needs, parameters
from helpers.vae_models import narrow, toy_vae

TILES = ["tile_x", "tile_y", "overlap", "tile_t", "overlap_t"]
# Parameters that the exact methods take; those after the first they need not follow. Where a caller sets one that a
# newer ComfyUI adds, its own method runs.
METHODS = {
    "decode": ["samples_in", "vae_options"],
    "decode_tiled": ["samples", *TILES],
    "encode": ["pixel_samples"],
    "encode_tiled": ["pixel_samples", *TILES],
}


@pytest.fixture(scope="module")
def vae():
    return toy_vae()


@pytest.mark.parametrize("name", METHODS)
def test_parameters_of_what_the_exact_vae_replaces(name):
    assert parameters(getattr(comfy.sd.VAE, name))[: len(METHODS[name])] == METHODS[name]


@pytest.mark.parametrize("name", METHODS)
def test_the_exact_vae_takes_all_parameters_of_comfyuis_by_name(name):
    from ultragen_core.host.vae.patch import ExactMethods

    names = parameters(getattr(comfy.sd.VAE, name))
    inspect.signature(getattr(ExactMethods, name)).bind(None, **dict.fromkeys(names))


def test_names_of_a_vaes_parts(vae):
    assert not lacking(
        vae,
        *("first_stage_model", "patcher", "device", "output_device", "vae_dtype", "disable_offload", "not_video"),
        *("latent_channels", "latent_dim", "output_channels", "upscale_ratio", "process_input", "process_output"),
    )
    frames, *sides = vae.upscale_ratio
    assert (frames(1), frames(21), *sides) == (1, 81, 8, 8) and vae.latent_dim == 3
    vae.throw_exception_if_invalid()


def test_what_a_vae_tells_of_its_compression(vae):
    assert vae.spacial_compression_encode() == 8 and vae.temporal_compression_decode() == 4
    assert vae.vae_encode_crop_pixels(torch.zeros(1, 17, 24, 3)).shape == (1, 16, 24, 3)


def test_values_before_and_after_a_vae(vae):
    assert torch.equal(vae.process_input(torch.tensor([0.0, 1.0])), torch.tensor([-1.0, 1.0]))
    assert torch.equal(vae.process_output(torch.tensor([-3.0, 0.0, 1.0])), torch.tensor([0.0, 0.5, 1.0]))


def test_one_padding_of_the_causal_convolutions_for_every_version():
    """A number of frames (0.30.0: a lone first frame shortens the kernel) or six sides (0.3.75: zeros are padded)."""
    conv = narrow("2.1").decoder.conv1
    padding = conv._padding
    assert padding == 2 or padding == (1, 1, 1, 1, 2, 0)
    assert conv.padding == ((0, 0, 0) if isinstance(padding, tuple) else (0, 1, 1))


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_layers_of_a_wan_vae_are_those_that_the_exact_tiles_know(version):
    from ultragen_core.vae.parse import channels_in, channels_out, decoder_layers, encoder_layers

    model = narrow(version)
    assert channels_in(decoder_layers(model)) == 4 and channels_out(decoder_layers(model)) == 3
    assert channels_in(encoder_layers(model)) == 3 and channels_out(encoder_layers(model)) == 8


def test_names_of_a_norms_parts():
    norm = narrow("2.1").decoder.head[0]
    assert not lacking(norm, "gamma", "bias", "scale", "channel_first")
    assert norm.scale == len(norm.gamma) ** 0.5


@needs({"patch_size", "temporal_kernel"} <= set(parameters(vae2_2.WanVAE.__init__)), "Wan 2.2's VAE for images")
@pytest.mark.parametrize("other", [{"patch_size": 1}, {"temporal_kernel": 1}, {"patch_size": 1, "temporal_kernel": 1}])
def test_a_vae_of_other_patches_or_time_kernels_is_refused_not_an_error(other):
    """Qwen-Image 2.1's VAE is made of Wan 2.2's class."""
    from ultragen_core.vae.parse import UnsupportedLayer, decoder_layers, encoder_layers

    model = vae2_2.WanVAE(dim=16, dec_dim=16, z_dim=4, **other)
    for layers in (decoder_layers, encoder_layers):
        with pytest.raises(UnsupportedLayer, match="Expected patches of 2 pixels and convolutions over 3 frames"):
            layers(model)
