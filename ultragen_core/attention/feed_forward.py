"""The feed-forward part of a Wan block with UltraGen's deltas on its two linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from .extras import FeedForwardExtras, with_delta

LAYERS = ("0", "1", "2")  # linear, GELU, linear


def feed_forward(ffn: nn.Module, x: Tensor, extras: FeedForwardExtras, strength: float = 1.0) -> Tensor:
    """Wan's feed-forward part, each linear layer of which computes W x + b + strength * B(A x): (b, s, c) -> (b, s, c).

    The paper (arXiv 2510.18775, section 4) names the feed-forward layers among those that domain-aware LoRA adapts;
    the published code has none there. They follow the blend of the branches, so that a block has one pair for each
    layer.
    ffn: Wan's modules under the names in `LAYERS`, which are called and never read, as in `Projections`.
    """
    for name in LAYERS:
        layer = getattr(ffn, name)
        x = with_delta(layer(x), getattr(extras, name, None), x, strength, overwrite=True)
    return x
