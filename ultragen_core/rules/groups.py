"""What the blocks of a model do on a grid, as data for a log line, a plan or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..attention.extras import ExtrasShape
from ..attention.spec import BlockSpec, BranchSpec
from ..attention.t3 import Windows, cuts_coincide, window_grid
from ..grid import TokenGrid, window_borders

# Branches with one window, or whose windows have no borders to draw.
WITHOUT_BORDERS = ("global", "strided")


class Branch(NamedTuple):
    """One branch of a layer on a grid.

    rows, columns: borders of its windows, edges included, as fractions of the frame's height and width. windows: tokens
    of every window, all frames together. projections: square matrix products per token (q, k, v). rank: of the deltas.
    note: what a picture of one frame does not show.
    """

    name: str
    rows: tuple[float, ...]
    columns: tuple[float, ...]
    windows: tuple[int, ...]
    projections: int = 3
    rank: int = 0
    note: str = ""

    def __str__(self) -> str:
        counts = f" {len(self.rows) - 1}x{len(self.columns) - 1}"
        return self.name + ("" if self.name in WITHOUT_BORDERS else counts)


class BlockGroup(NamedTuple):
    """Blocks that do the same: their indices, and the branches of one layer.

    ffn_rank: of the deltas on the feed-forward part, 0 without.
    """

    name: str
    blocks: tuple[int, ...]
    branches: tuple[Branch, ...]
    ffn_rank: int = 0

    @property
    def counted(self) -> str:
        """The name with the number of blocks: "12 even blocks", "1 even block"."""
        count = len(self.blocks)
        return f"{count} {self.name if count > 1 else self.name.replace('blocks', 'block')}"


def enabled_branches(spec: BlockSpec, extras: ExtrasShape) -> dict[str, tuple[BranchSpec, int]]:
    """The branches that run, the local one first, each with its compression ratio."""
    branches = {
        "local": (spec.local, 1),
        "hierarchical": (spec.hierarchical, extras.hierarchical_ratio),
        "global": (spec.global_, extras.global_ratio),
    }
    return {name: (branch, ratio) for name, (branch, ratio) in branches.items() if branch is not None}


def ultragen_group(
    name: str, blocks: Sequence[int], grid: TokenGrid, spec: BlockSpec, extras: ExtrasShape
) -> BlockGroup:
    """Blocks of one parity under UltraGen's rule."""
    branches = enabled_branches(spec, extras).items()
    return BlockGroup(
        name, tuple(blocks), tuple(_ultragen_branch(key, grid, *branch, extras.rank) for key, branch in branches)
    )


def _ultragen_branch(name: str, grid: TokenGrid, spec: BranchSpec, ratio: int, rank: int) -> Branch:
    sides = (spec.map_side(length, ratio) for length in (grid.h, grid.w))
    rows, columns = (
        tuple(border / side for border in window_borders(side, spec.num_windows, spec.shifted)) for side in sides
    )
    return Branch(
        name,
        rows,
        columns,
        windows=_window_tokens(grid, spec, ratio),
        projections=2 if spec.key_from_query else 3,
        rank=rank if name != "local" and spec.lora_strength else 0,  # a coarse branch has deltas at any ratio
        note=f"at 1/{ratio} of the resolution" if ratio > 1 else "",
    )


def _window_tokens(grid: TokenGrid, spec: BranchSpec, ratio: int) -> tuple[int, ...]:
    _, regions = spec.layout(grid, ratio)
    return tuple(
        region.window_grid(grid.t).tokens for region in regions for _ in range(region.windows[1] * region.windows[2])
    )


def t3_group(name: str, blocks: Sequence[int], grid: TokenGrid, windows: Windows) -> BlockGroup:
    """Blocks with the same windows under T3-Video's rule."""
    nt, nh, nw = windows
    rows, columns = (tuple(i / count for i in range(count + 1)) for count in (nh, nw))
    extent = window_grid(grid, windows).tokens
    tokens = (extent,) * (grid.tokens // extent)
    branches = [Branch("neighbours", rows, columns, tokens, note=f"{nt} in time" if nt > 1 else "all frames")]
    if not cuts_coincide(grid, windows):
        whole, steps = (0.0, 1.0), "x".join(map(str, windows))
        branches.append(Branch("strided", whole, whole, tokens, note=f"every {steps}th token"))
    return BlockGroup(name, tuple(blocks), tuple(branches))
