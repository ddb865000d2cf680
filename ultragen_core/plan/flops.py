"""What a layer costs under each attention rule, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..attention.config import BlockSpec, BranchSpec
from ..attention.extras import ExtrasShape
from ..attention.layer import branch_layout
from ..attention.t3 import Windows, coincide, window_grid
from ..grid import TokenGrid
from ..wan import WanShape

TEXT_TOKENS = 512


class Operations(NamedTuple):
    """Floating-point operations, by the kind of kernel that does them."""

    attention: float = 0.0
    products: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.attention + other.attention, self.products + other.products)

    def __mul__(self, factor: float) -> Operations:
        return Operations(self.attention * factor, self.products * factor)

    @property
    def total(self) -> float:
        return self.attention + self.products


def attention_in(windows: Sequence[int], channels: int) -> Operations:
    """Scores and sums of self-attention inside windows of so many tokens each."""
    return Operations(attention=4.0 * channels * sum(tokens**2 for tokens in windows))


def projections(tokens: int, channels: int, count: int = 1) -> Operations:
    """`count` square matrix products."""
    return Operations(products=count * 2.0 * tokens * channels**2)


def deltas(tokens: int, channels: int, rank: int) -> Operations:
    """Low-rank deltas of q, k and v."""
    return Operations(products=3 * 4.0 * tokens * channels * rank)


def dense_layer(grid: TokenGrid, channels: int) -> Operations:
    return attention_in([grid.tokens], channels) + projections(grid.tokens, channels, 4)


def t3_layer(grid: TokenGrid, windows: Windows, channels: int) -> Operations:
    extent = window_grid(grid, windows).tokens
    one_set = attention_in([extent] * (grid.tokens // extent), channels) + projections(grid.tokens, channels, 3)
    return one_set * (1 if coincide(grid, windows) else 2) + projections(grid.tokens, channels)


def ultragen_layer(grid: TokenGrid, spec: BlockSpec, extras: ExtrasShape) -> Operations:
    total = projections(grid.tokens, extras.channels)
    for branch, ratio, rank in branches(spec, extras).values():
        windows = window_tokens(grid, branch, ratio)
        total += attention_in(windows, extras.channels)
        total += projections(sum(windows), extras.channels, 2 if branch.key_from_query else 3)
        total += deltas(sum(windows), extras.channels, rank)
    return total


def branches(spec: BlockSpec, extras: ExtrasShape) -> dict[str, tuple[BranchSpec, int, int]]:
    """The branches that are switched on, each with its compression ratio and the rank of its deltas."""
    coarse = {
        "hierarchical": (spec.hierarchical, extras.hierarchical_ratio),
        "global": (spec.global_, extras.global_ratio),
    }
    ranks = {
        name: (branch, ratio, extras.rank if branch.lora_strength else 0)
        for name, (branch, ratio) in coarse.items()
        if branch
    }
    return {"local": (spec.local, 1, 0), **ranks}


def rest_of_block(tokens: int, shape: WanShape) -> Operations:
    """Cross-attention to a text of full length, and the feed-forward part."""
    cross = Operations(attention=4.0 * shape.channels * tokens * TEXT_TOKENS) + projections(tokens, shape.channels, 2)
    return cross + Operations(products=4.0 * tokens * shape.channels * shape.ffn_channels)


def window_tokens(grid: TokenGrid, spec: BranchSpec, ratio: int = 1) -> list[int]:
    """Tokens of every window of a branch."""
    _, regions = branch_layout(grid, spec, ratio)
    return [
        region.window_grid(grid.t).tokens for region in regions for _ in range(region.windows[1] * region.windows[2])
    ]
