"""Values for the tiny model's weights: seeded random numbers, and one path on which noise becomes drifting clouds.

Queries equal keys, so that RoPE makes every token attend to its neighbours: attention blurs. The head removes the noise
and paints what attention has blurred; the VAE interpolates. So each branch of UltraGen shows in the picture, and a
broken one too.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

DIM = 256
PATCH = 4  # Wan joins 2x2 pixels of the latent into one token


def dit_weight(key: str, shape: tuple[int, ...], channels: int, generator: Generator) -> Tensor:
    """Make one tensor of a transformer for latents of `channels` channels. Further input channels (an image) get 0."""
    noise = torch.randn(shape, generator=generator)
    if key.endswith(("norm_q.weight", "norm_k.weight")):
        return torch.full(shape, 2.0)
    if key.endswith("norm3.weight"):
        return torch.ones(shape)
    if key.endswith(("self_attn.q.bias", "self_attn.k.bias")):
        return torch.randn(shape, generator=Generator().manual_seed(0))
    if key.endswith("modulation"):
        open_gate = torch.zeros(shape)
        open_gate[:, 2 : shape[1] : 6] = 1  # the gate on self-attention's result
        return open_gate + 0.1 * noise
    if "sample_conv" in key:  # near the average over the kernel, where training starts
        mean = 0 if key.endswith("bias") else 1 / math.prod(shape[1:])
        return mean + 0.1 * mean * noise
    if key.endswith("bias"):
        return 0.02 * noise
    if key == "patch_embedding.weight":
        weight = torch.zeros(shape)
        weight[:, :channels] = _directions(channels)[0].reshape(DIM, channels, *shape[2:])
        return weight
    on_the_path = _path_weight(key, channels, generator)
    if on_the_path is not None:
        return on_the_path.reshape(shape)
    quiet = any(part in key for part in ("time_projection", "text_embedding", "self_attn", "cross_attn.o"))
    return (0.2 if quiet else 1.0) * noise / math.sqrt(math.prod(shape[1:]))


def _directions(channels: int) -> tuple[Tensor, Tensor]:
    """Split the token space: directions that hold the latent's patch, and directions that hold what attention blurs."""
    directions = torch.linalg.qr(torch.randn(DIM, DIM, generator=Generator().manual_seed(0)))[0]
    return directions[:, : PATCH * channels], directions[:, PATCH * channels :]


def _path_weight(key: str, channels: int, generator: Generator) -> Tensor | None:
    patch, room = _directions(channels)
    if key.endswith("self_attn.v.weight"):
        return torch.eye(DIM)
    if key.endswith("self_attn.o.weight"):
        mixture = torch.randn(room.shape[1], patch.shape[1], generator=generator) / 2
        return room @ mixture @ patch.T + room @ room.T
    if key == "head.head.weight":
        noise = patch.reshape(DIM, channels, PATCH).permute(2, 1, 0).flatten(0, 1)
        clouds = torch.randn(channels, DIM, generator=generator) @ room @ room.T
        return 0.5 * noise - 0.04 * clouds.repeat(PATCH, 1)
    return None


def vae_weight(key: str, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Make one tensor of the VAE: mixes channels with smooth kernels, so that it interpolates between pixels."""
    if key.endswith(("gamma", "bias")):
        return torch.full(shape, float(key.endswith("gamma")))
    if ".residual." in key or "to_qkv" in key or "proj" in key:
        return 0.3 * torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    mixture = torch.randn(shape[:2], generator=generator) / math.sqrt(shape[1])
    if key == "decoder.head.2.weight":  # Wan 2.2's head makes 2x2 pixels at once: give them one colour
        mixture = mixture[:3].repeat_interleave(shape[0] // 3, 0)
    if "time_conv" in key:
        mixture = torch.eye(shape[1]).repeat(shape[0] // shape[1], 1)
    kernel = torch.ones(())
    for axis, length in enumerate(shape[2:]):
        causal = len(shape) == 5 and axis == 0  # in time the last tap is now
        taps = [1.0] if length == 1 else [0.0, 0.0, 1.0] if causal else [0.25, 0.5, 0.25]
        kernel = kernel[..., None] * torch.tensor(taps)
    return mixture[(..., *[None] * kernel.ndim)] * kernel
