"""Helpers of several test files."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ultragen_core.attention.engine import Engine
from ultragen_core.attention.module import WanProjections
from ultragen_core.plan.flops import FLOPs

DATA = Path(__file__).resolve().parent.parent / "data"


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return ||a - b|| / ||b|| in float32. With NaN every comparison fails."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def dense_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute scaled dot-product attention on (batch, tokens, channels)."""
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class ToyAttention(WanProjections):
    """The parts of a Wan self-attention that a layer uses, with seeded random weights."""

    def __init__(self, channels: int, heads: int = 2):
        torch.manual_seed(0)
        super().__init__(channels, heads)
        self.requires_grad_(False)


def counted(run) -> FLOPs:
    """FLOPs of run(engine) by the sizes that its attention and its linear layers are called with."""
    attention = products = 0.0

    def attend(q, k, v, heads):
        nonlocal attention
        attention += 4 * q.shape[0] * q.shape[1] * k.shape[1] * q.shape[2]
        return dense_attention(q, k, v, heads)

    def project(module, args, output):
        nonlocal products
        products += 2 * output.numel() * module.in_features if isinstance(module, nn.Linear) else 0

    hook = register_module_forward_hook(project)
    try:
        run(Engine(attend))
    finally:
        hook.remove()
    return FLOPs(attention, products)
