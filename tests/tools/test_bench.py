"""The benchmarks' baseline computes what the pack computes: a faster wrong baseline, or a slower one, would flatter."""

from __future__ import annotations

import pytest
import torch
from helpers.support import ToyAttention, dense_attention, relative_error, seeded

from tools.bench.published import published_attention
from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.extras import BlockExtras, ExtrasShape, initial_block
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.rules.ultragen import block_spec


@pytest.mark.parametrize("block", [2, 3])
@torch.no_grad()
def test_published_arithmetic_agrees(block):
    grid, shape = TokenGrid(2, 13, 21), ExtrasShape(24, rank=4, refined=True)
    extras = BlockExtras(shape)
    extras.load_state_dict({k: v + 0.1 * seeded(*v.shape, seed=len(k)) for k, v in initial_block(shape).items()})
    gates = Gates(seeded(1, 1, 24).sigmoid(), seeded(1, 1, 24, seed=1).sigmoid())
    attn, x = ToyAttention(24), seeded(1, grid.tokens, 24)
    spec = block_spec(block, LocalConfig(), GlobalConfig(), trained=True)
    ours = ultragen_attention(attn, x, grid, spec, extras, gates, Engine(dense_attention))
    assert relative_error(published_attention(attn, x, grid, block, extras, gates), ours) < 1e-5
