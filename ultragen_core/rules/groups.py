"""What the blocks of a model do on a grid, as data for a log line, a plan or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..attention.config import BlockSpec, BranchSpec
from ..attention.extras import ExtrasShape
from ..attention.layer import map_side
from ..attention.t3 import Windows, coincide, window_grid
from ..grid import TokenGrid, window_borders
from ..plan.flops import Operations, branches, t3_layer, ultragen_layer, window_tokens

# Branches whose windows are always one, or have no borders that could be drawn.
WHOLE_FRAME = ("global", "strided")


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
        windows = f" {len(self.rows) - 1}x{len(self.columns) - 1}"
        return self.name + ("" if self.name in WHOLE_FRAME else windows)


class Kind(NamedTuple):
    """Blocks that do the same: their numbers, the branches and the operations of one layer."""

    name: str
    blocks: tuple[int, ...]
    branches: tuple[Branch, ...]
    operations: Operations


def ultragen_kind(name: str, blocks: Sequence[int], grid: TokenGrid, spec: BlockSpec, extras: ExtrasShape) -> Kind:
    cuts = branches(spec, extras).items()
    drawn = tuple(_ultragen_branch(branch, grid, cut, ratio) for branch, (cut, ratio, _) in cuts)
    return Kind(name, tuple(blocks), drawn, ultragen_layer(grid, spec, extras))


def _ultragen_branch(name: str, grid: TokenGrid, spec: BranchSpec, ratio: int) -> Branch:
    sides = (map_side(length, spec, ratio) for length in (grid.h, grid.w))
    rows, columns = (
        tuple(border / side for border in window_borders(side, spec.num_windows, spec.shifted)) for side in sides
    )
    tokens = window_tokens(grid, spec, ratio)
    note = f"at 1/{ratio} of the resolution" if ratio > 1 else ""
    return Branch(name, rows, columns, (min(tokens), max(tokens)), note)


def t3_kind(name: str, blocks: Sequence[int], grid: TokenGrid, windows: Windows, channels: int) -> Kind:
    nt, nh, nw = windows
    rows, columns = (tuple(i / count for i in range(count + 1)) for count in (nh, nw))
    tokens = (window_grid(grid, windows).tokens,) * 2
    time = f"{nt} in time" if nt > 1 else "all frames"
    drawn = [Branch("neighbours", rows, columns, tokens, time)]
    if not coincide(grid, windows):
        steps = "x".join(map(str, windows))
        drawn.append(Branch("strided", (0.0, 1.0), (0.0, 1.0), tokens, f"every {steps}th token"))
    return Kind(name, tuple(blocks), tuple(drawn), t3_layer(grid, windows, channels))
