"""Cutting grids into windows: exact inverses, whole coverage, never an empty window."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers.support import seeded

from ultragen_core.grid import (
    TokenGrid,
    cut_axis,
    cut_grid,
    nearest_multiple,
    window_partition,
    window_unpartition,
)

GRIDS = [(68, 120), (135, 240), (33, 60), (7, 5), (1, 1)]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("num_windows", range(1, 7))
@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_partition_round_trip_is_exact(h, w, num_windows, shifted):
    grid = TokenGrid(2, h, w)
    x = seeded(2, *grid, 3)
    out = torch.full_like(x, torch.nan)
    for region in cut_grid(grid, num_windows, shifted):
        part = x[:, :, region.rows, region.columns]
        windows = window_partition(part, region.windows)
        window_grid = region.window_grid(grid.t)
        assert windows.shape == (2 * region.windows[1] * region.windows[2], window_grid.tokens, 3)
        out[:, :, region.rows, region.columns] = window_unpartition(windows, region.windows, window_grid)
    assert torch.equal(out, x)


def test_a_window_is_a_rectangle_of_the_frame_with_all_frames():
    grid = TokenGrid(2, 4, 6)
    x = torch.arange(grid.tokens).reshape(1, *grid, 1)
    windows = window_partition(x, (1, 2, 3))
    assert windows[4].flatten().tolist() == x[0, :, 2:4, 2:4].flatten().tolist()


@pytest.mark.parametrize("windows", [(1, 1, 1), (4, 3, 2), (2, 1, 5), (4, 6, 10)])
def test_partition_in_time_round_trips(windows):
    grid = TokenGrid(4, 6, 10)
    x = seeded(2, *grid, 3)
    parts = window_partition(x, windows)
    extent = TokenGrid(*(length // n for length, n in zip(grid, windows, strict=True)))
    assert parts.shape == (2 * windows[0] * windows[1] * windows[2], extent.tokens, 3)
    assert torch.equal(window_unpartition(parts, windows, extent), x)


def test_a_strided_window_takes_every_nth_token():
    x = torch.arange(4 * 6 * 10).reshape(1, 4, 6, 10, 1)
    windows = window_partition(x, (2, 3, 5), strided=True)
    t, h, w = 1, 2, 3
    assert windows[(t * 3 + h) * 5 + w].flatten().tolist() == x[0, t::2, h::3, w::5].flatten().tolist()


@pytest.mark.parametrize("length", [*range(1, 40), 68, 120, 135])
@pytest.mark.parametrize("num_windows", range(1, 7))
def test_balanced_windows_differ_by_one_and_none_is_empty(length, num_windows):
    sizes = [(run.stop - run.start) // n for run, n in cut_axis(length, num_windows) for _ in range(n)]
    assert sum(sizes) == length and len(sizes) == min(num_windows, length)
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_shifted_borders_lie_in_the_middle_of_plain_windows():
    def borders(shifted):
        runs = cut_axis(120, 4, shifted)
        return [run.start + i * (run.stop - run.start) // n for run, n in runs for i in range(n)] + [120]

    assert borders(True)[1:-1] == [(a + b) // 2 for a, b in pairwise(borders(False))]


@pytest.mark.parametrize(
    ("length", "num_windows", "expected"),
    [(68, 5, 70), (120, 5, 120), (17, 2, 16), (30, 4, 28), (33, 3, 33), (34, 3, 33), (3, 4, 4), (2, 4, 2), (1, 5, 1)],
)
def test_nearest_multiple(length, num_windows, expected):
    """The published rule, ties down (30 of 4: 28); an axis that it would make vanish keeps its length."""
    assert nearest_multiple(length, num_windows) == expected
