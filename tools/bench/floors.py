"""The least time that a card could need: FLOPs and bytes, counted, over the rates in docs/data/ceilings.csv."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ultragen_core.plan.flops import FLOPs
from ultragen_core.wan import WanShape

DATA = Path(__file__).parents[2] / "docs" / "data"
ITEMSIZE = 2  # bytes in bf16
LAYERS_OF_A_BLOCK = 3  # self-attention, cross-attention, feed-forward


class Ceilings(NamedTuple):
    """FLOP/s of attention and of matrix products, and bytes/s of copies."""

    attention: float
    products: float
    copies: float

    def floor(self, flops: FLOPs, moved: float) -> float:
        """Seconds for `flops`, or for `moved` bytes if that takes longer: the two may overlap."""
        return max(flops.attention / self.attention + flops.products / self.products, moved / self.copies)


@functools.cache
def ceilings(attention: str = "bf16", products: str = "bf16") -> Ceilings:
    """attention, products: the precision of each, bf16 or fp8."""
    with (DATA / "ceilings.csv").open(encoding="utf-8", newline="") as file:
        rates = {row["what"]: float(row["rate"]) * 1e12 for row in csv.DictReader(file)}
    return Ceilings(rates[f"cuDNN {attention} attention"], rates[f"{products} matrix products"], rates["copies"])


def evaluation_floor(flops: FLOPs, model: WanShape, tokens: int, rates: Ceilings) -> float:
    """Seconds of one evaluation. Each layer of a block reads and writes all tokens once."""
    return rates.floor(flops, model.blocks * LAYERS_OF_A_BLOCK * _map_bytes(tokens, model.channels))


def layer_floor(flops: FLOPs, tokens: int, channels: int) -> float:
    """Seconds of one self-attention layer."""
    return ceilings().floor(flops, _map_bytes(tokens, channels))


def _map_bytes(tokens: int, channels: int) -> float:
    return 2.0 * tokens * channels * ITEMSIZE


class ConvolutionFloor(TorchDispatchMode):
    """Inside, adds up the floors of all convolutions, each with its input and output moved once."""

    def __init__(self):
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            x, weight = args[:2]
            flops = FLOPs(products=2.0 * result.numel() * weight[0].numel())
            self.seconds += ceilings().floor(flops, ITEMSIZE * float(x.numel() + result.numel()))
        return result


@functools.cache
@torch.no_grad()
def decode_floor(width: int, height: int, frames: int) -> float:
    """Seconds of ComfyUI's whole-frame decode with Wan 2.1's VAE. Its attention is matrix products of one wide head."""
    import comfy.ldm.wan.vae

    with torch.device("meta"):
        vae = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])
    attention = next(one for one in vae.decoder.modules() if isinstance(one, comfy.ldm.wan.vae.AttentionBlock))
    attention.optimized_attention = lambda q, k, v: torch.empty_like(q)  # ComfyUI's asks for free memory
    h, w, length = height // 8, width // 8, (frames + 3) // 4
    seconds = []
    for count in (2, 3):
        with ConvolutionFloor() as floor:
            vae.decode(torch.empty(1, 16, count, h, w, device="meta"))
        seconds.append(floor.seconds)
    products = FLOPs(products=4.0 * (h * w) ** 2 * attention.proj.in_channels)
    return seconds[0] + (length - 2) * (seconds[1] - seconds[0]) + length * ceilings().floor(products, 0.0)
