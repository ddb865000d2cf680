"""What one block computes: its branches, and the windows that they cut a token grid into."""

from __future__ import annotations

from dataclasses import dataclass

from ..grid import Region, TokenGrid, cut_grid, nearest_multiple


def compressed(length: int, ratio: int) -> int:
    """Cells of an axis of `length` tokens, `ratio` tokens each; a shorter axis is one cell."""
    return max(length // ratio, 1)


@dataclass(frozen=True)
class BranchSpec:
    """One branch in one block.

    num_windows: per axis, over the branch's map. shifted: by half a window (Swin). resize: resize the map until it
    divides into windows; otherwise windows differ in size by one token. antialias: when resizing. key_from_query: keys
    use the query projection. lora_strength: factor on the low-rank deltas.
    """

    num_windows: int = 1
    shifted: bool = False
    resize: bool = True
    antialias: bool = False
    key_from_query: bool = False
    lora_strength: float = 1.0

    def map_side(self, length: int, ratio: int = 1) -> int:
        """Side of the branch's map on an axis of `length` tokens, after compression by `ratio` and resizing."""
        side = compressed(length, ratio)
        return nearest_multiple(side, self.num_windows) if self.resize else side

    def layout(self, grid: TokenGrid, ratio: int = 1) -> tuple[TokenGrid, tuple[Region, ...]]:
        """The branch's map on a token grid, and the windows it is cut into."""
        size = TokenGrid(grid.t, *(self.map_side(length, ratio) for length in (grid.h, grid.w)))
        return size, tuple(cut_grid(size, self.num_windows, self.shifted))


@dataclass(frozen=True)
class BlockSpec:
    """The branches of one block; None: the branch is off."""

    local: BranchSpec
    hierarchical: BranchSpec | None
    global_: BranchSpec | None
