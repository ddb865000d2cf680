"""Wan 2.1's VAE over whole clips, for training: ComfyUI's own loops work in chunks with feature caches.

A clip has 1 + 4n frames. Only the modules' weights are used, so that all ComfyUI versions give the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import comfy.ldm.wan.vae
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 16
CONSTANT, LOGVAR = 4.0, -6.0
NOISE = 0.1  # scale of a new VAE's random weights, as a share of what preserves a signal's size
SHAPE = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True]}


@torch.no_grad()
def new_vae(width: int) -> nn.Module:
    """Create a VAE to train: it averages colours on the way down and repeats them on the way up.

    UltraGen's coarse branches start like this too. All other weights are small and random, residual blocks add nothing
    yet, and latents have little noise. At the two ends, where norms remove the channels' scale, half of the channels
    are constant, which preserves it.
    """
    vae = comfy.ldm.wan.vae.WanVAE(dim=width, z_dim=CHANNELS, **SHAPE)
    for module in vae.modules():
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            _carry(module)
        elif kind == "RMS_norm":
            nn.init.ones_(module.gamma)
    for module in vae.modules():
        kind = type(module).__name__
        if kind in ("ResidualBlock", "AttentionBlock"):
            nn.init.zeros_((module.residual[-1] if kind == "ResidualBlock" else module.proj).weight)
    for coder, modules in ((vae.encoder, vae.encoder.downsamples), (vae.decoder, vae.decoder.upsamples)):
        last = next(module for module in reversed(modules) if type(module).__name__ == "Resample")
        for conv in (last.resample[1], *([last.time_conv] if last.mode == "downsample3d" else [])):
            constant = conv.out_channels // 2
            nn.init.zeros_(conv.weight[constant:])
            nn.init.constant_(conv.bias[constant:], CONSTANT)
        # Near zero SiLU halves, and the norm divides by the constants' length.
        coder.head[-1].weight *= 2 * CONSTANT * 0.5**0.5
    nn.init.constant_(vae.conv1.bias[CHANNELS:], LOGVAR)
    return vae


def _carry(conv: nn.Module) -> None:
    """Initialise with small random weights plus an identity on channels, averaging over the stride."""
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
    conv.weight *= NOISE
    nn.init.zeros_(conv.bias)
    taps = tuple(_taps(conv))
    joined = conv.weight[(0, 0, *taps)].numel()
    for out in range(conv.out_channels):
        conv.weight[(out, out % conv.in_channels, *taps)] += 1 / joined


def _taps(conv: nn.Module) -> Iterator[slice]:
    """Yield the kernel positions, per axis, that a stride joins: the newest frames, the pixel or it and the next."""
    in_time = len(conv.kernel_size) - 2
    for axis, (size, stride) in enumerate(zip(conv.kernel_size, conv.stride, strict=True)):
        start = size - stride if axis < in_time else 0 if stride > 1 else size // 2
        yield slice(start, start + stride)


def encode(vae: nn.Module, clip: Tensor, branches: bool = True) -> tuple[Tensor, Tensor]:
    """Encode (b, 3, frames, height, width) in -1..1 to means and log variances, each (b, 16, t, h, w).

    branches: if False, residual blocks and the attention pass their input through.
    """
    x = _blocks(vae.encoder.downsamples, causal(vae.encoder.conv1, clip), branches)
    x = _middle(vae.encoder, x) if branches else x
    return causal(vae.conv1, _end(vae.encoder, x)).chunk(2, dim=1)


def decode(vae: nn.Module, latent: Tensor, branches: bool = True) -> Tensor:
    """Decode (b, 16, t, h, w) to (b, 3, frames, height, width), about -1..1. branches: as in `encode`."""
    x = causal(vae.decoder.conv1, causal(vae.conv2, latent))
    x = _middle(vae.decoder, x) if branches else x
    return _end(vae.decoder, _blocks(vae.decoder.upsamples, x, branches))


def causal(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Apply a causal convolution: zeros before the first frame and around each frame."""
    rows, columns = (side // 2 for side in conv.kernel_size[1:])
    return F.conv3d(F.pad(x, (columns, columns, rows, rows, conv.kernel_size[0] - 1, 0)), conv.weight, conv.bias)


def _blocks(modules: nn.Sequential, x: Tensor, branches: bool) -> Tensor:
    for module in modules:
        x = _resampled(module, x) if type(module).__name__ == "Resample" else _residual(module, x, branches)
    return x


def _residual(block: nn.Module, x: Tensor, branches: bool = True) -> Tensor:
    skip = x if isinstance(block.shortcut, nn.Identity) else causal(block.shortcut, x)
    if not branches:
        return skip
    norm1, _, conv1, norm2, _, _, conv2 = block.residual
    return skip + causal(conv2, F.silu(_norm(norm2, causal(conv1, F.silu(_norm(norm1, x))))))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
    return x * (norm.scale / length).to(x.dtype) * norm.gamma.to(x.dtype)


def _middle(coder: nn.Module, x: Tensor) -> Tensor:
    before, attention, after = coder.middle
    x = _residual(before, x)
    frames = _frames(x)
    q, k, v = (part.flatten(2).transpose(1, 2) for part in attention.to_qkv(_norm(attention.norm, frames)).chunk(3, 1))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, frames.shape[2:])
    return _residual(after, x + _clips(attention.proj(mixed), len(x)))


def _end(coder: nn.Module, x: Tensor) -> Tensor:
    norm, _, conv = coder.head
    return causal(conv, F.silu(_norm(norm, x)))


def _resampled(module: nn.Module, x: Tensor) -> Tensor:
    """Resample each frame by the module's layers, and in time where it does so.

    The first frame stays one frame. Doubling in time does not see it; halving does.
    """
    if module.mode == "upsample3d" and x.shape[2] > 1:
        doubled = causal(module.time_conv, x[:, :, 1:]).unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
        x = torch.cat((x[:, :, :1], doubled), dim=2)
    x = _clips(module.resample(_frames(x)), len(x))
    if module.mode == "downsample3d" and x.shape[2] > 1:
        halved = F.conv3d(x, module.time_conv.weight, module.time_conv.bias, stride=(2, 1, 1))
        x = torch.cat((x[:, :, :1], halved), dim=2)
    return x


def _frames(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _clips(frames: Tensor, batch: int) -> Tensor:
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def folded(vae: nn.Module, mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """Return the VAE's state with latents shifted and scaled to Wan 2.1's published means and deviations.

    The change per channel is folded into the two 1x1x1 convolutions next to the latents, so that the narrow VAE runs
    wherever Wan 2.1's does. mean, deviation: of the present latents, (16,).
    """
    published = comfy.latent_formats.Wan21()
    target, spread = published.latents_mean.flatten(), published.latents_std.flatten()
    state = {key: tensor.detach().clone() for key, tensor in vae.state_dict().items()}
    scale = spread.to(deviation) / deviation
    offset = target.to(deviation) - scale * mean
    weight, bias = state["conv1.weight"], state["conv1.bias"]
    weight[:CHANNELS] *= scale.view(-1, 1, 1, 1, 1)
    bias[:CHANNELS] = bias[:CHANNELS] * scale + offset
    bias[CHANNELS:] += 2 * scale.log()  # of the variances
    state["conv2.bias"] -= state["conv2.weight"].flatten(1) @ (offset / scale)
    state["conv2.weight"] /= scale.view(1, -1, 1, 1, 1)
    return state
