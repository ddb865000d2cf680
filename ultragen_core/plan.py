"""What a layer does and costs under each attention rule, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .attention.config import BlockSpec, BranchSpec
from .attention.extras import ExtrasShape
from .attention.grid import Region, TokenGrid
from .attention.layer import branch_layout
from .attention.t3 import Windows, coincide, window_grid
from .wan import WanShape

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
    branches = (
        (spec.local, 1, 0),
        (spec.hierarchical, extras.hierarchical_ratio, extras.rank),
        (spec.global_, extras.global_ratio, extras.rank),
    )
    total = projections(grid.tokens, extras.channels)
    for branch, ratio, rank in branches:
        if branch is not None:
            windows = window_tokens(grid, branch, ratio)
            total += attention_in(windows, extras.channels)
            total += projections(sum(windows), extras.channels, 2 if branch.key_from_query else 3)
            total += deltas(sum(windows), extras.channels, rank)
    return total


def rest_of_block(tokens: int, shape: WanShape) -> Operations:
    """Cross-attention to a text of full length, and the feed-forward part."""
    cross = Operations(attention=4.0 * shape.channels * tokens * TEXT_TOKENS) + projections(tokens, shape.channels, 2)
    return cross + Operations(products=4.0 * tokens * shape.channels * shape.ffn_channels)


class Branch(NamedTuple):
    """The windows of a branch over a frame.

    rows, columns: borders of the windows, rim included, in parts of the frame's height and width. tokens: of the
    smallest and of the largest window, all its frames together. note: what a picture of one frame does not show.
    """

    name: str
    rows: tuple[float, ...]
    columns: tuple[float, ...]
    tokens: tuple[int, int]
    note: str = ""

    def __str__(self) -> str:
        windows = f"{len(self.rows) - 1}x{len(self.columns) - 1}"
        return self.name if self.name == "global" else f"{self.name} {windows}"


class Kind(NamedTuple):
    """Blocks that do the same: their numbers, the branches and the operations of one layer."""

    name: str
    blocks: tuple[int, ...]
    branches: tuple[Branch, ...]
    operations: Operations


def ultragen_kind(name: str, blocks: Sequence[int], grid: TokenGrid, spec: BlockSpec, extras: ExtrasShape) -> Kind:
    branches = (
        ("local", spec.local, 1),
        ("hierarchical", spec.hierarchical, extras.hierarchical_ratio),
        ("global", spec.global_, extras.global_ratio),
    )
    drawn = tuple(_ultragen_branch(name, grid, branch, ratio) for name, branch, ratio in branches if branch is not None)
    return Kind(name, tuple(blocks), drawn, ultragen_layer(grid, spec, extras))


def _ultragen_branch(name: str, grid: TokenGrid, spec: BranchSpec, ratio: int) -> Branch:
    size, regions = branch_layout(grid, spec, ratio)
    tokens = window_tokens(grid, spec, ratio)
    note = f"at 1/{ratio} of the resolution" if ratio > 1 else ""
    return Branch(name, _borders(regions, 0, size.h), _borders(regions, 1, size.w), (min(tokens), max(tokens)), note)


def _borders(regions: Sequence[Region], axis: int, length: int) -> tuple[float, ...]:
    borders = {length}
    for region in regions:
        cut, count = region[axis], region.windows[axis + 1]
        borders |= set(range(cut.start, cut.stop, (cut.stop - cut.start) // count))
    return tuple(border / length for border in sorted(borders))


def t3_kind(name: str, blocks: Sequence[int], grid: TokenGrid, windows: Windows, channels: int) -> Kind:
    nt, nh, nw = windows
    rows, columns = (tuple(i / count for i in range(count + 1)) for count in (nh, nw))
    tokens = (window_grid(grid, windows).tokens,) * 2
    time = f"{nt} in time" if nt > 1 else "all frames"
    branches = [Branch("neighbours", rows, columns, tokens, time)]
    if not coincide(grid, windows):
        steps = "x".join(map(str, windows))
        branches.append(Branch("strided", (0.0, 1.0), (0.0, 1.0), tokens, f"every {steps}th token (t x h x w)"))
    return Kind(name, tuple(blocks), tuple(branches), t3_layer(grid, windows, channels))


def window_tokens(grid: TokenGrid, spec: BranchSpec, ratio: int = 1) -> list[int]:
    """Tokens of every window of a branch."""
    _, regions = branch_layout(grid, spec, ratio)
    return [
        region.window_grid(grid.t).tokens for region in regions for _ in range(region.windows[1] * region.windows[2])
    ]
