"""Any grid under any settings: finite numbers of the right shape, the same for some tokens at a time, at the predicted
cost.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import prod

import torch
from helpers.strategies import global_configs, grids, local_configs, pieces, shares, window_counts
from helpers.support import ToyAttention, counted, dense_attention, relative_error, seeded
from hypothesis import given
from hypothesis import strategies as st

from ultragen_core.attention.engine import Engine
from ultragen_core.attention.extras import BlockExtras, ExtrasShape, initial_block
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.attention.t3 import t3_attention, window_grid
from ultragen_core.grid import TokenGrid, cut_grid, window_partition, window_unpartition, window_view
from ultragen_core.plan.flops import layer_flops
from ultragen_core.rules.groups import t3_group, ultragen_group
from ultragen_core.rules.t3 import PUBLISHED_1_3B, PUBLISHED_5B, divisors
from ultragen_core.rules.ultragen import block_spec

C = 24
# Largest relative error of the same sums in another order.
ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
dtypes = st.sampled_from(list(ROUNDING))
ratios = st.integers(1, 4)
shapes = st.builds(
    ExtrasShape,
    channels=st.just(C),
    rank=st.sampled_from([0, 4]),
    global_ratio=ratios,
    hierarchical_ratio=ratios,
    refined=st.booleans(),
)


@lru_cache
def attention_of(dtype):
    return ToyAttention(C).to(dtype)


@lru_cache(maxsize=64)
def extras_of(shape, trained, dtype):
    state, generator = initial_block(shape), torch.Generator().manual_seed(1)
    if trained:
        state = {key: value + 0.3 * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    extras = BlockExtras(shape)
    extras.load_state_dict(state)
    return extras.to(dtype).requires_grad_(False)


def check(layer, x, at_a_time):
    """layer(x, engine) is sound, and the same for some tokens at a time; returns the operations counted in it."""
    results = []
    operations = counted(lambda engine: results.append(layer(x, engine)))
    whole = results[0]
    assert whole.shape == x.shape and whole.dtype == x.dtype and torch.isfinite(whole).all()
    bounded = layer(x, Engine(dense_attention, tokens_at_a_time=at_a_time))
    assert relative_error(bounded, whole) < ROUNDING[x.dtype]
    return operations


@given(
    grids(), st.integers(1, 2), st.integers(0, 1), local_configs, global_configs, shapes, st.booleans(),
    st.tuples(shares, shares), dtypes, pieces,
)  # fmt: skip
def test_ultragen(grid, batch, block, local, global_, shape, trained, share, dtype, at_a_time):
    spec = block_spec(block, local, global_, trained)
    gates = Gates(*(torch.full((batch, 1, 1), value) for value in share))
    attn, extras = attention_of(dtype), extras_of(shape, trained, dtype)
    x = seeded(batch, grid.tokens, C).to(dtype)
    flops = check(lambda x, engine: ultragen_attention(attn, x, grid, spec, extras, gates, engine), x, at_a_time)
    assert flops == layer_flops(ultragen_group("", [0], grid, spec, shape).branches, grid, C) * batch


@given(st.data(), grids(), st.integers(1, 2), dtypes, pieces)
def test_t3_with_any_windows(data, grid, batch, dtype, at_a_time):
    windows = tuple(data.draw(st.sampled_from(divisors(length))) for length in grid)
    attn, x = attention_of(dtype), seeded(batch, grid.tokens, C).to(dtype)
    flops = check(lambda x, engine: t3_attention(attn, x, grid, windows, engine), x, at_a_time)
    assert flops == layer_flops(t3_group("", [0], grid, windows).branches, grid, C) * batch


@given(st.sampled_from([PUBLISHED_1_3B, PUBLISHED_5B]), st.integers(1, 64), st.integers(1, 256), st.integers(1, 256))
def test_t3_cuts_every_grid_evenly_or_names_one_that_it_cuts(published, t, h, w):
    try:
        cut_evenly(published, TokenGrid(t, h, w))
    except ValueError as error:
        good = re.search(r"The nearest size that does: (\d+)x(\d+), (\d+) frames?\.$", str(error))
        w, h, frames = map(int, good.groups())
        cut_evenly(published, TokenGrid((frames + 3) // 4, h // published.pixels, w // published.pixels))


def cut_evenly(published, grid):
    for block in range(5):
        windows = published.windows_of(block, grid)
        assert all(length % n == 0 for length, n in zip(grid, windows, strict=True))


@given(grids(), window_counts, st.booleans(), st.integers(1, 9), dtypes)
def test_partition_round_trips_over_every_region(grid, num_windows, shifted, channels, dtype):
    x = seeded(2, *grid, channels).to(dtype)
    out = torch.full_like(x, torch.nan)
    for region in cut_grid(grid, num_windows, shifted):
        part, extent = x[:, :, region.rows, region.columns], region.window_grid(grid.t)
        windows = window_partition(part, region.windows)
        assert windows.shape == (2 * region.windows[1] * region.windows[2], extent.tokens, channels)
        assert out[:, :, region.rows, region.columns].isnan().all(), "two regions overlap"
        out[:, :, region.rows, region.columns] = window_unpartition(windows, region.windows, extent)
    assert torch.equal(out, x)


@given(st.data(), grids(), st.integers(1, 9), dtypes)
def test_strided_windows_return_through_the_view(data, grid, channels, dtype):
    windows = tuple(data.draw(st.sampled_from(divisors(length))) for length in grid)
    x = seeded(2, *grid, channels).to(dtype)
    parts = window_partition(x, windows, strided=True)
    assert parts.shape == (2 * prod(windows), window_grid(grid, windows).tokens, channels)
    out = torch.full_like(x, torch.nan)
    view = window_view(out, windows, strided=True)
    view.copy_(parts.view_as(view))
    assert torch.equal(out, x)
