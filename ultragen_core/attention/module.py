"""UltraGen's and T3-Video's attention as modules with weights of their own, for training and for other programs."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..grid import TokenGrid
from .engine import Engine
from .extras import BlockExtras, ExtrasShape, FeedForwardExtras, initial_block, initial_deltas, initial_gates
from .feed_forward import feed_forward
from .gate import BlockGates, Gates
from .layer import ultragen_attention
from .spec import BlockSpec
from .t3 import Windows, t3_attention


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """PyTorch's attention, which has a backward pass everywhere: (b, tokens, c) -> the same shape."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


class WanProjections(nn.Module):
    """The weights of a Wan self-attention under Wan's names: projections q, k, v, o and RMS norms norm_q, norm_k."""

    def __init__(self, channels: int, heads: int, eps: float = 1e-6):
        super().__init__()
        self.num_heads, self.head_dim = heads, channels // heads
        self.q, self.k, self.v, self.o = (nn.Linear(channels, channels) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(channels, eps), nn.RMSNorm(channels, eps)


class _OverProjections(nn.Module):
    """Holds the modules of a Wan self-attention under their own names, so that state dicts keep Wan's keys."""

    def __init__(self, attn: nn.Module, engine: Engine | None):
        super().__init__()
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        for name, module in attn.named_children():
            setattr(self, name, module)
        self.engine = engine or Engine(sdpa)


class UltraGenAttention(_OverProjections):
    """UltraGen's layer (arXiv 2510.18775, section 4) with extras and gates as before training.

    attn: a Wan self-attention, ComfyUI's or `WanProjections`, whose modules are used, not copied. spec: the branches,
    from `block_spec`. shape: of the extras; deltas on the feed-forward part belong to `UltraGenFeedForward`. engine:
    None is PyTorch's attention; layers that share one share RoPE tables.
    """

    def __init__(self, attn: nn.Module, spec: BlockSpec, shape: ExtrasShape, engine: Engine | None = None):
        super().__init__(attn, engine)
        self.spec, shape = spec, replace(shape, ffn_channels=0)
        self.extras, self.gates = BlockExtras(shape), BlockGates(shape.channels)
        self.extras.load_state_dict(initial_block(shape))
        self.gates.load_state_dict(initial_gates(shape.channels))

    def forward(self, x: Tensor, grid: TokenGrid, t: Tensor) -> Tensor:
        """x (b, s, c), grid of s tokens, t (b,) = 1000 * sigma -> (b, s, c). Raises ValueError if grid and x differ."""
        with torch.autocast(x.device.type, enabled=False):
            gates = Gates(self.gates.hierarchical_gate(t), self.gates.global_gate(t))
        return ultragen_attention(self, x, grid, self.spec, self.extras, gates, self.engine)


class UltraGenFeedForward(nn.Module):
    """Wan's feed-forward part with low-rank deltas on its linear layers, which add nothing before training.

    ffn: that of a Wan block, ComfyUI's or an `nn.Sequential` of linear layer, GELU and linear layer, whose modules are
    used under their own names, not copied. shape: of the extras, with its ffn_channels.
    """

    def __init__(self, ffn: nn.Module, shape: ExtrasShape, strength: float = 1.0):
        super().__init__()
        for name, module in ffn.named_children():
            self.add_module(name, module)
        self.strength, self.extras = strength, FeedForwardExtras(shape)
        self.extras.load_state_dict(initial_deltas(shape, "ffn"))

    def forward(self, x: Tensor) -> Tensor:
        """x (b, s, c) -> (b, s, c)."""
        return feed_forward(self, x, self.extras, self.strength)


class T3Attention(_OverProjections):
    """T3-Video's layer (arXiv 2512.13492), which has no weights besides Wan's.

    attn, engine: as for `UltraGenAttention`. windows: counts (nt, nh, nw), which must divide the grid.
    """

    def __init__(self, attn: nn.Module, windows: Windows, engine: Engine | None = None):
        super().__init__(attn, engine)
        self.windows = windows

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """x (b, s, c), grid of s tokens -> (b, s, c). Raises ValueError unless grid, x and windows agree."""
        if any(length % count for length, count in zip(grid, self.windows, strict=True)):
            raise ValueError(f"Windows must divide the token grid, got {self.windows} windows on {tuple(grid)} tokens.")
        return t3_attention(self, x, grid, self.windows, self.engine)
