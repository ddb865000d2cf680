"""Every Triton kernel against the plain function that defines it, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.support import dense_attention, relative_error, seeded
from torch import nn

from ultragen_core.attention import engine, rope
from ultragen_core.grid import TokenGrid, cut_grid
from ultragen_core.ops import resample

C = 24
ENGINE = engine.Engine(dense_attention)
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def plain(function, *args):
    """The same function without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_working_kernels", lambda device: None)
        return function(*args)


@pytest.fixture
def both(interpreted_kernels, monkeypatch):
    """run(function, make_args): through the kernels, which must really run, and plain."""
    used = []
    for name in ("resample", "norm_rope_", "compress", "refine_blend_"):
        kernel = getattr(interpreted_kernels, name)
        monkeypatch.setattr(interpreted_kernels, name, lambda *a, kernel=kernel: used.append(kernel) or kernel(*a))

    def run(function, make_args):
        fast = function(*make_args())
        assert used, "the plain function ran instead"
        return fast, plain(function, *make_args())

    return run


@pytest.mark.parametrize(("size", "windows"), [((6, 10), 2), ((9, 12), 3), ((4, 8), 4), ((7, 11), 3), ((5, 5), 1)])
def test_windows_there_and_back(both, size, windows):
    x, grid = seeded(2, 3, 6, 10, C), TokenGrid(3, *size)
    regions = cut_grid(grid, windows)
    parts = []
    for region in regions:
        fast, slow = both(resample.to_windows, lambda region=region: (x, size, region, False))
        assert fast.shape == slow.shape and relative_error(fast, slow) < 1e-6
        parts.append(slow)
    if len(regions) == 1 and windows > 1:
        fast, slow = both(resample.from_windows, lambda: (parts, regions, grid, (6, 10), False))
        assert fast.shape == slow.shape == x.shape and relative_error(fast, slow) < 1e-6


def test_moving_tokens_alone_is_exact(both):
    x, region = seeded(1, 2, 6, 9, C), cut_grid(TokenGrid(2, 6, 9), 3)[0]
    fast, slow = both(resample.to_windows, lambda: (x, (6, 9), region, False))
    assert torch.equal(fast, slow)


def test_norm_and_rope(both):
    norm = nn.RMSNorm(C, eps=1e-6)
    norm.weight.copy_(seeded(C))
    table = rope.rope_table(TokenGrid(2, 3, 2), C // 2, torch.device("cpu"))
    fast, slow = both(rope.norm_rope, lambda: (seeded(3, 12, C), norm, table, 2, ENGINE))
    assert relative_error(fast, slow) < 1e-6


@pytest.mark.parametrize("ratio", [2, 4])
def test_compression(both, ratio):
    conv = nn.Conv2d(C, C, ratio, stride=ratio, groups=C)
    fast, slow = both(resample.compress, lambda: (seeded(2, 2, 9, 14, C), conv, ratio, ENGINE))
    assert fast.shape == slow.shape and relative_error(fast, slow) < 1e-6


@pytest.mark.parametrize(
    ("frames", "batch_of_gates", "height", "coarse", "rows"),  # rows at a time
    [(1, 1, 3, (2, 9), None), (3, 2, 3, (3, 18), None), (3, 1, 4, (2, 9), 2), (1, 2, 3, (2, 9), 1)],
)
def test_refinement_and_blend(both, frames, batch_of_gates, height, coarse, rows):
    conv = nn.Conv3d(C, C, 3, padding=1, groups=C)
    shape, low = (2, frames, height, 18, C), (2, frames, *coarse, C)
    tokens_at_a_time = rows and 2 * frames * rows * 18
    gate, some = seeded(batch_of_gates, 1, C).sigmoid(), replace(ENGINE, tokens_at_a_time=tokens_at_a_time)
    fast, slow = both(resample.refine_blend, lambda: (seeded(*low), conv, seeded(*shape, seed=1), gate, some))
    assert relative_error(fast, slow) < 1e-6


def test_the_check_at_first_use_passes_and_can_fail(interpreted_kernels, monkeypatch):
    interpreted_kernels.check(torch.device("cpu"))
    monkeypatch.setattr(interpreted_kernels, "compress", lambda x, *a: x[:, :, ::2, ::2])
    with pytest.raises(RuntimeError, match="Triton's compress is off"):
        interpreted_kernels.check(torch.device("cpu"))


def test_kernels_stay_away_from_training(interpreted_kernels):
    assert engine.kernels_for(seeded(2)) is interpreted_kernels
    with torch.enable_grad():
        assert engine.kernels_for(seeded(2)) is None  # whose weights may learn
