"""Warns of frame sizes that divide badly into windows, and names the nearest good ones."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, pairwise

from ..attention.extras import ExtrasShape
from ..attention.spec import BlockSpec, BranchSpec
from ..grid import TokenGrid, window_borders
from .groups import enabled_branches

# UltraGen's published size is itself resized by 2.9%. The effect of more than 5% is not measured.
MAX_RESIZE = 0.05
# Balanced windows differ by one token, which counts where they have fewer than five.
MAX_UNEVENNESS = 0.25


def resized(length: int, branch: BranchSpec, ratio: int) -> float:
    """Relative change of an axis of `length` tokens that is cropped to compress by `ratio` and resized into windows."""
    return abs(branch.map_side(length, ratio) * ratio / length - 1)


def uneven(length: int, branch: BranchSpec, ratio: int) -> float:
    """How much longer a branch's longest window on an axis is than its shortest; 0 is equal."""
    borders = window_borders(branch.map_side(length, ratio), branch.num_windows)
    sizes = [b - a for a, b in pairwise(borders)]
    return max(sizes) / min(sizes) - 1


def ultragen_advice(grid: TokenGrid, specs: Iterable[BlockSpec], extras: ExtrasShape, pixels: int) -> list[str]:
    """One sentence where frames divide badly into the windows of blocks with these specs, otherwise none.

    pixels: per token and axis.
    """
    cuts = {branch for spec in specs for branch in enabled_branches(spec, extras).values()}

    def worst(measure, *lengths: int) -> float:
        return max((measure(length, *cut) for length in lengths for cut in cuts), default=0.0)

    def fits(length: int) -> bool:
        return worst(resized, length) <= MAX_RESIZE and worst(uneven, length) <= MAX_UNEVENNESS

    sides = grid[:0:-1]  # width first
    if all(map(fits, sides)):
        return []
    faults = [
        text.format(value)
        for text, limit, value in (
            ("features are resized by up to {:.1%}", MAX_RESIZE, worst(resized, *sides)),
            ("windows are up to {:.0%} longer than others", MAX_UNEVENNESS, worst(uneven, *sides)),
        )
        if value > limit
    ]
    smaller = [next(filter(fits, range(side, 0, -1)), None) for side in sides]
    larger = [next(filter(fits, count(side))) for side in sides]
    good = [_frame(size, pixels) for size in (smaller, larger) if None not in size]
    return [
        f"Frames of {_frame(sides, pixels)} divide badly into windows: {', '.join(faults)}. The nearest good sizes:"
        f" {', '.join(good)}."
    ]


def _frame(sides: Iterable[int], pixels: int) -> str:
    return "x".join(str(side * pixels) for side in sides)
