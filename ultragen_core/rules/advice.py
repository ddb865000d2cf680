"""Sizes that an attention rule cuts badly, said in sentences, with the nearest ones that it cuts well."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, pairwise

from ..attention.config import BlockSpec, BranchSpec
from ..attention.extras import ExtrasShape
from ..attention.layer import map_side
from ..attention.t3 import Published
from ..grid import TokenGrid, window_borders
from ..plan.flops import branches

# UltraGen's published size is itself resized by 2.9%. What more than this does to a picture is not measured.
MOST_RESIZED = 0.05
# Balanced windows differ by one token, which counts where they have fewer than five.
MOST_UNEVEN = 0.25


def resized(length: int, branch: BranchSpec, ratio: int) -> float:
    """By which part a branch stretches or shrinks an axis of so many tokens: to divide it into windows, and because
    compression by `ratio` leaves a remainder out.
    """
    return abs(map_side(length, branch, ratio) * ratio / length - 1)


def uneven(length: int, branch: BranchSpec, ratio: int) -> float:
    """By which part a branch's longest window on an axis is longer than its shortest."""
    borders = window_borders(map_side(length, branch, ratio), branch.num_windows)
    sizes = [b - a for a, b in pairwise(borders)]
    return max(sizes) / min(sizes) - 1


def ultragen_advice(grid: TokenGrid, specs: Iterable[BlockSpec], extras: ExtrasShape, pixels: int) -> list[str]:
    """One sentence where blocks with these specs cut frames badly, none where they cut them well.

    pixels: of one token, per axis.
    """
    cuts = {(branch, ratio) for spec in specs for branch, ratio, _ in branches(spec, extras).values()}

    def worst(measure, *lengths: int) -> float:
        return max((measure(length, *cut) for length in lengths for cut in cuts), default=0.0)

    def fits(length: int) -> bool:
        return worst(resized, length) <= MOST_RESIZED and worst(uneven, length) <= MOST_UNEVEN

    sides = grid[:0:-1]  # width first
    if all(map(fits, sides)):
        return []
    faults = [
        said.format(value)
        for said, limit, value in (
            ("features are resized by up to {:.1%}", MOST_RESIZED, worst(resized, *sides)),
            ("windows are up to {:.0%} longer than others", MOST_UNEVEN, worst(uneven, *sides)),
        )
        if value > limit
    ]
    smaller = [next(filter(fits, range(side, 0, -1)), None) for side in sides]
    larger = [next(filter(fits, count(side))) for side in sides]
    good = [_frame(size, pixels) for size in (smaller, larger) if None not in size]
    return [
        f"Frames of {_frame(sides, pixels)} cut badly into windows: {', '.join(faults)}. The nearest good sizes:"
        f" {', '.join(good)}."
    ]


def _frame(sides: Iterable[int], pixels: int) -> str:
    return "x".join(str(side * pixels) for side in sides)


def t3_advice(grid: TokenGrid, published: Published) -> list[str]:
    """One sentence for any size but the published one."""
    if grid == published.grid:
        return []
    try:
        published.table(grid)
    except ValueError as refusal:
        return [str(refusal)]
    return [
        f"{published.size(grid)} is a size that the weights were not trained for (experimental; theirs is"
        f" {published.size(published.grid)})."
    ]
