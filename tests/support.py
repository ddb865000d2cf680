"""What several test files share."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

DATA = Path(__file__).resolve().parent / "data"


def relative_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b|| in float32; nan never passes a comparison."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def dense_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Plain scaled dot-product attention on (batch, tokens, channels)."""
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
