"""Floating-point operations (FLOPs) of layers, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..grid import TokenGrid
from ..rules.groups import Branch
from ..wan import WanShape

TEXT_TOKENS = 512


class FLOPs(NamedTuple):
    """Floating-point operations of attention (scores and weighted sums) and of matrix products."""

    attention: float = 0.0
    products: float = 0.0

    def __add__(self, other: FLOPs) -> FLOPs:
        return FLOPs(self.attention + other.attention, self.products + other.products)

    def __mul__(self, factor: float) -> FLOPs:
        return FLOPs(self.attention * factor, self.products * factor)

    @property
    def total(self) -> float:
        return self.attention + self.products


def attention_flops(windows: Sequence[int], channels: int) -> FLOPs:
    """Self-attention inside windows of these numbers of tokens."""
    return FLOPs(attention=4.0 * channels * sum(tokens**2 for tokens in windows))


def projection_flops(tokens: int, channels: int, count: int = 1) -> FLOPs:
    """`count` square matrix products."""
    return FLOPs(products=count * 2.0 * tokens * channels**2)


def delta_flops(tokens: int, rank: int, channels: int) -> FLOPs:
    """Low-rank deltas of linear layers. channels: inputs and outputs of all of them together."""
    return FLOPs(products=2.0 * tokens * rank * channels)


def dense_layer_flops(grid: TokenGrid, channels: int) -> FLOPs:
    """A self-attention layer with full attention."""
    return attention_flops([grid.tokens], channels) + projection_flops(grid.tokens, channels, 4)


def layer_flops(branches: Iterable[Branch], grid: TokenGrid, channels: int) -> FLOPs:
    """A self-attention layer under a rule: its branches and the output projection.

    Compression, resizing, refinement, gates and norms do not count.
    """
    total = projection_flops(grid.tokens, channels)
    for branch in branches:
        tokens = sum(branch.windows)
        total += attention_flops(branch.windows, channels)
        total += projection_flops(tokens, channels, branch.projections)
        total += delta_flops(tokens, branch.rank, 3 * 2 * channels)  # q, k and v
    return total


def rest_of_block_flops(tokens: int, model: WanShape) -> FLOPs:
    """Cross-attention to a text of full length (without its keys and values), and the feed-forward layers."""
    cross = FLOPs(attention=4.0 * model.channels * tokens * TEXT_TOKENS) + projection_flops(tokens, model.channels, 2)
    return cross + FLOPs(products=4.0 * tokens * model.channels * model.ffn_channels)


def feed_forward_delta_flops(tokens: int, model: WanShape, rank: int) -> FLOPs:
    """Low-rank deltas of both linear layers of a block's feed-forward part."""
    return delta_flops(tokens, rank, 2 * (model.channels + model.ffn_channels))
