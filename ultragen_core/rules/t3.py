"""T3-Video's rule (arXiv 2512.13492): block i has entry i mod 5 of its model's window counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product

from torch import Tensor, nn

from ..attention.config import DEFAULT_GLOBAL, DEFAULT_LOCAL, GlobalConfig, LocalConfig
from ..attention.extras import BlockExtras
from ..attention.gate import NO_GATES, Gates
from ..attention.split.member import Member
from ..attention.split.t3 import split_t3_attention
from ..attention.split.t3_counts import t3_received
from ..attention.t3 import Windows, cuts_coincide, t3_attention, window_grid
from ..grid import TokenGrid
from ..sizes import VideoSize
from ..wan import WanShape
from .blocks import choose_blocks, describe_dense, format_blocks
from .groups import BlockGroup, t3_group


@dataclass(frozen=True)
class PublishedWindows:
    """The windows that one of the published models was trained with.

    grid: the only published size. windows: counts (nt, nh, nw), block i uses number i mod 5. pixels: of one token, per
    axis.
    """

    grid: TokenGrid
    windows: tuple[Windows, ...]
    pixels: int

    def windows_of(self, block_index: int, grid: TokenGrid) -> Windows:
        """The counts for a block on any grid; on the published grid the published counts.

        Elsewhere (experimental) they are the divisors whose windows come nearest to the published ones in tokens and
        shape. Windows of single whole frames and windows over all frames stay so. Raises ValueError where no divisors
        come near.
        """
        windows = self._nearest(block_index, grid)
        if windows is None:
            good = next(filter(self._fits, self._neighbours(grid)), self.grid)
            raise ValueError(
                f"The t3 rule needs equal windows, but {self.size(grid)} (grid {grid}) does not divide into any close"
                f" to the published ones. The nearest size that does: {self.size(good)}."
            )
        return windows

    @lru_cache(maxsize=32)  # noqa: B019, the two instances live as long as the process
    def table(self, grid: TokenGrid) -> tuple[Windows, ...]:
        """The counts of blocks 0 to 4; further blocks repeat them. Raises ValueError like `windows_of`."""
        return tuple(self.windows_of(index, grid) for index in range(len(self.windows)))

    def wanted(self, block_index: int, grid: TokenGrid) -> TokenGrid:
        """The extent of a block's published windows, at most the grid's; over all frames if the published one was."""
        published = self.windows[block_index % len(self.windows)]
        t, h, w = map(min, window_grid(self.grid, published), grid)
        return TokenGrid(grid.t if published[0] == 1 else t, h, w)

    def size(self, grid: TokenGrid) -> VideoSize:
        """The video with this token grid; Wan makes four frames one latent frame, after the first."""
        return VideoSize(grid.w * self.pixels, grid.h * self.pixels, 4 * grid.t - 3)

    def _fits(self, grid: TokenGrid) -> bool:
        return all(self._nearest(index, grid) for index in range(len(self.windows)))

    def _neighbours(self, grid: TokenGrid) -> list[TokenGrid]:
        """Nearby grids, nearest first; another number of frames, which a large prime needs, last."""
        near = product(*([n for n in range(length - 8, length + 9) if n > 0] for length in grid))

        def distance(other: tuple[int, int, int]) -> tuple[int, int]:
            frames, *sides = (abs(a - b) for a, b in zip(other, grid, strict=True))
            return frames, sum(sides)

        return [TokenGrid(*other) for other in sorted(near, key=distance)]

    def _nearest(self, block_index: int, grid: TokenGrid) -> Windows | None:
        published = self.windows[block_index % len(self.windows)]
        if published == (self.grid.t, 1, 1):
            return grid.t, 1, 1
        wanted = self.wanted(block_index, grid)
        best = min(product(*map(divisors, grid)), key=lambda windows: _distance(window_grid(grid, windows), wanted))
        extent = window_grid(grid, best)
        near = all(1 / 4 <= a / b <= 4 for a, b in zip(extent[1:], wanted[1:], strict=True))
        return best if near and 1 / 2 <= extent.tokens / wanted.tokens <= 2 else None


PUBLISHED_1_3B = PublishedWindows(
    TokenGrid(21, 136, 240), ((21, 1, 1), (1, 17, 30), (1, 8, 40), (3, 17, 8), (7, 8, 6)), pixels=16
)
PUBLISHED_5B = PublishedWindows(
    TokenGrid(21, 68, 120), ((21, 1, 1), (1, 17, 20), (1, 17, 6), (3, 4, 15), (7, 4, 8)), pixels=32
)


@lru_cache(maxsize=1024)
def divisors(length: int) -> list[int]:
    return [n for n in range(1, length + 1) if length % n == 0]


def _distance(window: TokenGrid, wanted: TokenGrid) -> float:
    """How far a window is from the wanted one: mostly its number of tokens, then its shape."""
    shape = sum(abs(math.log(a / b)) for a, b in zip(window, wanted, strict=True))
    return abs(math.log(window.tokens / wanted.tokens)) + 0.25 * shape


@dataclass(frozen=True)
class T3Rule:
    """T3-Video's rule in `blocks`; `dense` gives the reason for every block that keeps full attention."""

    published: PublishedWindows
    blocks: list[int]
    dense: dict[int, str]
    name = "t3"
    extras = None
    gate_sources = NO_GATES

    def attentions(
        self,
        extras: Mapping[int, BlockExtras],
        gates: Mapping[int, Gates],
        grid: TokenGrid,
        member: Member | None = None,
    ) -> dict[int, Callable[..., Tensor]]:
        table = self.published.table(grid)
        layer = partial(t3_attention, grid=grid) if member is None else partial(split_t3_attention, member=member)
        return {index: partial(layer, windows=table[index % len(table)]) for index in self.blocks}

    def feed_forwards(self, extras: Mapping[int, BlockExtras]) -> dict[int, Callable[[nn.Module, Tensor], Tensor]]:
        return {}

    def received(self, grid: TokenGrid, members: int) -> dict[int, tuple[int, ...]]:
        table = self.published.table(grid)
        return {index: t3_received(grid, members, table[index % len(table)]) for index in self.blocks}

    def groups(self, grid: TokenGrid) -> list[BlockGroup]:
        groups = []
        for turn, windows in enumerate(table := self.published.table(grid)):
            if blocks := [index for index in self.blocks if index % len(table) == turn]:
                groups.append(t3_group(f"blocks {len(table)}n+{turn}", blocks, grid, windows))
        return groups

    def describe(self, grid: TokenGrid, block_count: int) -> list[str]:
        windows = self.published.table(grid)
        names = ["x".join(map(str, n)) + (" once" if cuts_coincide(grid, n) else "") for n in windows]
        return [
            f"rule t3 in {len(self.blocks)} of {block_count} blocks ({format_blocks(self.blocks)})",
            f"windows (t x h x w) {', '.join(names)} in turn",
            *describe_dense(self.dense),
        ]

    def advice(self, grid: TokenGrid) -> list[str]:
        if grid == self.published.grid:
            return []
        try:
            self.published.table(grid)
        except ValueError as refusal:
            return [str(refusal)]
        size, trained = self.published.size(grid), self.published.size(self.published.grid)
        return [f"The weights were not trained for {size} (experimental); they were for {trained}."]


def t3_rule(model: WanShape, local: LocalConfig = DEFAULT_LOCAL, global_: GlobalConfig = DEFAULT_GLOBAL) -> T3Rule:
    """T3-Video's rule for a model. Raises ValueError for settings that it cannot use: all but `dense_blocks`."""
    if local != DEFAULT_LOCAL:
        raise ValueError(
            "The t3 rule has fixed windows and no gates, but the local config asks for others. Disconnect the local"
            " config, or set attention_rule to ultragen."
        )
    if global_ != GlobalConfig(dense_blocks=global_.dense_blocks):
        raise ValueError(
            "The t3 rule has no global branch, but the global config changes one. Set everything but dense_blocks to"
            " its default, or set attention_rule to ultragen."
        )
    published = PUBLISHED_5B if model.uses_wan22_vae else PUBLISHED_1_3B
    return T3Rule(published, *choose_blocks(model, global_.dense_blocks, {}))
