"""Narrow Wan VAEs with every parameter random, and both directions of the exact tiles without a host."""

from __future__ import annotations

import torch

from ultragen_core.rectangle import Rectangle
from ultragen_core.vae import decode, encode
from ultragen_core.vae.context import Context
from ultragen_core.vae.feature_buffer import FeatureBuffer
from ultragen_core.vae.geometry import output_size
from ultragen_core.vae.parse import decoder_layers, encoder_layers

UNITS = {"2.1": 8, "2.2": 16}


def narrow(version: str, channels: int = 4, width: int = 16) -> torch.nn.Module:
    import comfy.ldm.wan.vae
    import comfy.ldm.wan.vae2_2

    common = {"z_dim": channels, "temperal_downsample": [False, True, True]}
    if version == "2.1":
        model = comfy.ldm.wan.vae.WanVAE(dim=width, **common)
    else:
        model = comfy.ldm.wan.vae2_2.WanVAE(dim=width, dec_dim=width, **common)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            parameter.data = 1 + 0.1 * noise
        else:
            parameter.data = noise * (0.1 if name.endswith("bias") else parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)


def toy_vae(width: int = 16):
    """comfy.sd.VAE around a narrow Wan 2.1 VAE, through its own detection."""
    import comfy.sd

    return comfy.sd.VAE(sd=narrow("2.1", channels=16, width=width).state_dict())


def context(dtype: torch.dtype = torch.float32) -> Context:
    return Context(lambda conv: (conv.weight, conv.bias), torch.device("cpu"), dtype, lambda: None)


def tiled_decode(model: torch.nn.Module, z: torch.Tensor, tile: int) -> torch.Tensor:
    head, tail = decode.split_layers(decoder_layers(model))
    channels, size = head[-1].proj.out_channels, tuple(z.shape[-2:])
    features = FeatureBuffer(z.shape[2], size, channels, z.dtype, torch.device("cpu"))
    decode.whole_frames(head, z, range(z.shape[2]), context(z.dtype), features, lambda index: None)
    size = output_size(tail, features.size)
    out = torch.full((1, 3, 4 * z.shape[2] - 3, *size), float("nan"), dtype=z.dtype)

    def emit(frames: slice, rect: Rectangle, pixels: torch.Tensor) -> None:
        rows, columns = rect.slices
        assert out[:, :, frames, rows, columns].isnan().all(), "a piece was written twice"
        out[:, :, frames, rows, columns] = pixels

    grid = decode.tile_grid(size, features.size, tile)
    decode.in_tiles(tail, features, grid, grid.tiles(), context(z.dtype), emit)
    return out


def tiled_encode(model: torch.nn.Module, x: torch.Tensor, tile: int) -> torch.Tensor:
    head, tail = encode.split_layers(encoder_layers(model))
    size = tuple(x.shape[-2:])
    latents = output_size(head, size)
    length, channels = encode.latent_frames(x.shape[2]), tail[0].proj.out_channels
    features = FeatureBuffer(length, latents, channels, torch.float32, torch.device("cpu"))

    def pixels(frames: slice, rect: Rectangle) -> torch.Tensor:
        rows, columns = rect.slices
        return x[:, :, frames, rows, columns]

    grid = encode.tile_grid(size, latents, tile)
    encode.in_tiles(head, pixels, size, grid, context(), features, lambda: None)
    return encode.whole_frames(tail, features, context(), lambda: None).chunk(2, dim=1)[0]


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, of the reference's maximum."""
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() / reference.abs().max()).item()
