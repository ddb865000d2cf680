"""Wan models, UltraGen's extras and a VAE with random weights, in memory."""

from __future__ import annotations

import comfy.ldm.wan.model as wan
import comfy.ldm.wan.vae
import comfy.sd
import torch

from ...attention.extras import ExtrasShape, initial_block
from ...attention.gate import BlockGates
from ...wan import WanShape
from ...weights.published import Extras

TEXT_CHANNELS = 4096
RANK = 64


def random_base(shape: WanShape, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Return the state of a Wan model in bfloat16 on the host. device: draws the numbers."""
    with torch.device("meta"):
        model = wan.WanModel(
            dim=shape.channels, ffn_dim=shape.ffn_channels, num_heads=shape.heads, num_layers=shape.blocks,
            in_dim=shape.out_channels, out_dim=shape.out_channels, text_dim=TEXT_CHANNELS, cross_attn_norm=True,
            operations=torch.nn,
        )  # fmt: skip
    state = {}
    for key, parameter in model.state_dict().items():
        scale = 0.02 if parameter.ndim > 1 else 0.1
        value = scale * torch.randn(parameter.shape, device=device)
        state[key] = (1 + value if "norm" in key and key.endswith("weight") else value).bfloat16().cpu()
    return state


def random_extras(channels: int, blocks: list[int]) -> Extras:
    """Return extras of the published shape for these blocks, in bfloat16. All blocks have the same gates."""
    shape = ExtrasShape(channels, RANK, refined=True)
    gates = _halved(BlockGates(channels).state_dict())
    states = (
        {key: value + 0.01 * torch.randn_like(value) for key, value in initial_block(shape).items()} for _ in blocks
    )
    return Extras(shape, dict(zip(blocks, map(_halved, states), strict=True)), dict.fromkeys(blocks, gates))


def _halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().bfloat16() for key, value in state.items()}


def random_vae(width: int):
    """Return Wan 2.1's VAE. width: channels of its last stage, 96 in the published one.

    The weights keep the signal's scale, so that rounding errors mean something.
    """
    model = comfy.ldm.wan.vae.WanVAE(dim=width, z_dim=16, temperal_downsample=[False, True, True])
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, weight in model.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        scale = 0.1 if name.endswith("bias") else weight[0].numel() ** -0.5
        state[name] = 1 + 0.1 * noise if name.endswith("gamma") else noise * scale
    return comfy.sd.VAE(sd=state)
