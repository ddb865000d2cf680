"""FLOPs by arithmetic against FLOPs counted in the real layers."""

from __future__ import annotations

import pytest
import torch
from helpers.support import ToyAttention, counted, seeded

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.extras import BlockExtras, ExtrasShape
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.attention.t3 import t3_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.plan.flops import dense_layer_flops, layer_flops
from ultragen_core.rules.groups import t3_group, ultragen_group
from ultragen_core.rules.t3 import PUBLISHED_1_3B
from ultragen_core.rules.ultragen import block_spec

C = 24


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize("local", [{}, {"cross_window": "swin", "uneven": "balanced"}, {"hierarchical": False}])
@pytest.mark.parametrize("lora_strength", [0.0, 0.5])
def test_ultragen(block, local, lora_strength):
    grid, shape, attn = TokenGrid(2, 17, 30), ExtrasShape(C, rank=4, refined=True), ToyAttention(C)
    local = LocalConfig(**local, hierarchical_lora_strength=lora_strength)
    spec = block_spec(block, local, GlobalConfig(lora_strength=lora_strength), trained=True)
    extras, gates = BlockExtras(shape), Gates(*torch.full((2, 1, 1, C), 0.5))
    x = seeded(1, grid.tokens, C)
    branches = ultragen_group("blocks", [block], grid, spec, shape).branches
    flops = layer_flops(branches, grid, C)
    assert counted(lambda engine: ultragen_attention(attn, x, grid, spec, extras, gates, engine)) == flops


def t3_flops(grid, windows, channels):
    return layer_flops(t3_group("blocks", [0], grid, windows).branches, grid, channels)


@pytest.mark.parametrize("windows", [(3, 1, 1), (1, 2, 3), (3, 2, 1)])
def test_t3(windows):
    grid, attn = TokenGrid(3, 6, 6), ToyAttention(C)
    x = seeded(1, grid.tokens, C)
    assert counted(lambda engine: t3_attention(attn, x, grid, windows, engine)) == t3_flops(grid, windows, C)


def test_published_figures():
    """T3-Video's 1.3B: 72.8 times fewer FLOPs of attention than dense, coinciding windows computed once."""
    grid = PUBLISHED_1_3B.grid
    layers = [t3_flops(grid, windows, 1536).attention for windows in PUBLISHED_1_3B.windows]
    assert 5 * dense_layer_flops(grid, 1536).attention / sum(layers) == pytest.approx(72.8, abs=0.05)
