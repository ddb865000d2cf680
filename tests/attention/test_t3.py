"""T3-Video's rule against numbers from the published code, its windows at the published sizes and at others."""

from __future__ import annotations

import pytest
import torch
from helpers.golden import T3 as GOLDEN
from helpers.golden import T3_OUTPUTS, t3_attn, t3_case
from helpers.support import dense_attention, relative_error, seeded

from ultragen_core.attention import t3
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.t3 import cuts_coincide, t3_attention, window_grid
from ultragen_core.grid import TokenGrid
from ultragen_core.rules.t3 import PUBLISHED_1_3B, PUBLISHED_5B

ENGINE = Engine(dense_attention)


@pytest.fixture(scope="module")
def attn():
    return t3_attn()


def run(attn, name, engine=ENGINE):
    return t3_attention(attn, *t3_case(name), engine)


@pytest.mark.parametrize("tokens_at_a_time", [None, 50])
@pytest.mark.parametrize("name", T3_OUTPUTS)
@torch.no_grad()
def test_layer(attn, name, tokens_at_a_time):
    assert (
        relative_error(run(attn, name, Engine(dense_attention, tokens_at_a_time=tokens_at_a_time)), GOLDEN[name]) < 1e-5
    )


@torch.no_grad()
def test_layer_through_the_triton_kernels(interpreted_kernels, attn):
    assert relative_error(run(attn, "case1.n1_3_5.out"), GOLDEN["case1.n1_3_5.out"]) < 1e-5


@pytest.mark.parametrize("windows", [(6, 1, 1), (1, 1, 1), (6, 8, 1)])
def test_windows_that_coincide_are_computed_once_with_the_same_result(attn, windows, monkeypatch):
    calls, grid = [], TokenGrid(6, 8, 12)

    def counted(q, k, v, heads):
        calls.append(q.shape)
        return dense_attention(q, k, v, heads)

    x = seeded(1, grid.tokens, 256)
    once = t3_attention(attn, x, grid, windows, Engine(counted))
    assert len(calls) == 1
    monkeypatch.setattr(t3, "cuts_coincide", lambda grid, windows: False)
    twice = t3_attention(attn, x, grid, windows, Engine(counted))
    assert len(calls) == 3 and relative_error(once, twice) < 1e-6


def test_close_and_remote_windows_differ_otherwise(attn):
    assert not cuts_coincide(TokenGrid(6, 8, 12), (2, 2, 2))
    assert relative_error(run(attn, "case0.n2_2_2.out"), GOLDEN["case0.n1_2_4.out"]) > 1e-3


@pytest.mark.parametrize(
    ("published", "grid", "table"),
    [
        (PUBLISHED_1_3B, (21, 136, 240), [(21, 1, 1), (1, 17, 30), (1, 8, 40), (3, 17, 8), (7, 8, 6)]),
        (PUBLISHED_5B, (21, 68, 120), [(21, 1, 1), (1, 17, 20), (1, 17, 6), (3, 4, 15), (7, 4, 8)]),
    ],
)
def test_published_sizes_get_the_published_windows_block_by_block(published, grid, table):
    for block in range(30):
        assert published.windows_of(block, TokenGrid(*grid)) == table[block % 5]


@pytest.mark.parametrize("published", [PUBLISHED_1_3B, PUBLISHED_5B])
@pytest.mark.parametrize(
    "grid", [(21, 68, 120), (21, 90, 160), (8, 136, 240), (8, 135, 240), (1, 136, 240), (21, 45, 80)]
)
def test_other_sizes_get_equal_windows_of_about_the_published_cost(published, grid):
    grid = TokenGrid(*grid)
    for block in range(1, 5):
        windows = published.windows_of(block, grid)
        assert all(length % n == 0 for length, n in zip(grid, windows, strict=True))
        assert 0.5 <= window_grid(grid, windows).tokens / published.wanted(block, grid).tokens <= 2
    assert published.windows_of(0, grid) == (grid.t, 1, 1)


@pytest.mark.parametrize(
    ("grid", "said", "good"),
    [
        ((21, 67, 113), "1808x1072, 81 frames (grid 21x67x113)", ((21, 66, 112), "1792x1056, 81 frames.")),
        ((53, 5, 50), "800x80, 209 frames (grid 53x5x50)", ((52, 5, 50), "800x80, 205 frames.")),
    ],
)
def test_a_grid_without_divisors_is_refused(grid, said, good):
    """67 and 113 are prime, and so is 53, near which no frame fits; the size that the message names works."""
    with pytest.raises(ValueError) as refusal:
        PUBLISHED_1_3B.windows_of(3, TokenGrid(*grid))
    assert said in str(refusal.value) and str(refusal.value).endswith(f"The nearest size that does: {good[1]}")
    assert all(PUBLISHED_1_3B.windows_of(block, TokenGrid(*good[0])) for block in range(5))


def test_a_wrong_grid_is_refused(attn):
    with pytest.raises(ValueError, match=r"Token grid must match the sequence, got grid=\(1, 2, 3\), tokens=7"):
        t3_attention(attn, seeded(1, 7, 256), TokenGrid(1, 2, 3), (1, 1, 1), ENGINE)


def test_a_batch_is_its_items(attn):
    grid = TokenGrid(2, 4, 6)
    x = seeded(3, grid.tokens, 256)
    alone = torch.cat([t3_attention(attn, x[i : i + 1], grid, (2, 2, 3), ENGINE) for i in range(3)])
    assert relative_error(t3_attention(attn, x, grid, (2, 2, 3), ENGINE), alone) < 1e-6
