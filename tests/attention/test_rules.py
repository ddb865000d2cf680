"""Switches, limits and independence of the layer that the golden numbers do not show."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from helpers.support import ToyAttention, dense_attention, relative_error, seeded
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.extras import BlockExtras, ExtrasShape, initial_block
from ultragen_core.attention.gate import GateLine, Gates
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.attention.rope import rope_table
from ultragen_core.attention.spec import BlockSpec, BranchSpec
from ultragen_core.grid import TokenGrid, window_borders
from ultragen_core.ops.norm_rope import apply_rope
from ultragen_core.rules.blocks import format_blocks, parse_blocks
from ultragen_core.rules.ultragen import WindowCounts, block_spec, untrained_windows

C, HEADS = 24, 2
ABLATIONS = {
    "full": ({}, {}),
    "no global": ({}, {"enabled": False}),
    "no cross-window": ({"cross_window": "off"}, {}),
    "swin": ({"cross_window": "swin"}, {}),
    "no hierarchical": ({"hierarchical": False}, {}),
    "no delta": ({}, {"lora_strength": 0.0}),
    "balanced": ({"uneven": "balanced"}, {}),
}


@pytest.fixture(scope="module")
def parts():
    shape = ExtrasShape(C, rank=4, refined=True)
    extras = BlockExtras(shape)
    generator = torch.Generator().manual_seed(1)
    extras.load_state_dict(
        {k: v + 0.3 * torch.randn(v.shape, generator=generator) for k, v in initial_block(shape).items()}
    )
    return ToyAttention(C, HEADS), extras.requires_grad_(False)


def run(parts, x, grid, local=None, global_=None, block=1, attention=dense_attention, share=0.5):
    attn, extras = parts
    spec = block_spec(block, LocalConfig(**(local or {})), GlobalConfig(**(global_ or {})), trained=True)
    gates = Gates(torch.full((1, 1, 1), share), torch.full((1, 1, 1), share))
    return ultragen_attention(attn, x, grid, spec, extras, gates, Engine(attention))


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_switch_changes_the_result(parts, name):
    grid = TokenGrid(2, 9, 14)
    x = seeded(1, grid.tokens, C)
    results = {other: run(parts, x, grid, *ABLATIONS[other]) for other in ABLATIONS}
    for other, result in results.items():
        assert result.shape == x.shape and torch.isfinite(result).all()
        if other != name:
            assert relative_error(result, results[name]) > 1e-3, (name, other)


def test_even_blocks_ignore_the_kind_of_cross_window(parts):
    grid = TokenGrid(1, 8, 8)
    x = seeded(1, grid.tokens, C)
    kinds = [run(parts, x, grid, {"cross_window": kind}, block=2) for kind in ("paper", "off", "swin")]
    assert torch.equal(kinds[0], kinds[1]) and torch.equal(kinds[0], kinds[2])


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 9), (3, 2, 3), (2, 3, 4), (1, 5, 2)])
@pytest.mark.parametrize("name", ABLATIONS)
def test_degenerate_grids_run(parts, grid, name):
    grid = TokenGrid(*grid)
    for block in (0, 1):
        y = run(parts, seeded(2, grid.tokens, C), grid, *ABLATIONS[name], block=block)
        assert y.shape == (2, grid.tokens, C) and torch.isfinite(y).all()


def test_batch_items_do_not_mix(parts):
    grid = TokenGrid(2, 6, 7)
    x = seeded(3, grid.tokens, C)
    alone = torch.cat([run(parts, x[i : i + 1], grid) for i in range(3)])
    assert relative_error(run(parts, x, grid), alone) < 1e-6


def test_local_tokens_see_their_window_alone(parts):
    grid = TokenGrid(2, 8, 8)
    x = seeded(1, grid.tokens, C)
    far = x.unflatten(1, grid).clone()
    far[:, :, 7, 7] += 1
    a, b = (run(parts, y, grid, block=0, share=1.0).unflatten(1, grid) for y in (x, far.flatten(1, 3)))
    changed = (a != b).any(-1)[0].any(0)
    assert changed[6:, 6:].all() and changed.sum() == 4


def test_attention_gets_contiguous_windows(parts):
    grid, seen = TokenGrid(2, 8, 10), []

    def attention(q, k, v, heads):
        seen.append((tuple(q.shape), all(y.is_contiguous() for y in (q, k, v)), heads))
        return dense_attention(q, k, v, heads)

    run(parts, seeded(1, grid.tokens, C), grid, block=0, attention=attention)
    assert seen == [
        ((16, 2 * 2 * 2, C), True, HEADS),
        ((4, 2 * 2 * 2, C), True, HEADS),
        ((1, 2 * 2 * 2, C), True, HEADS),
    ]


def test_a_wrong_grid_is_refused(parts):
    with pytest.raises(ValueError, match=r"Token grid must match the sequence, got grid=\(1, 2, 3\), tokens=7"):
        run(parts, seeded(1, 7, C), TokenGrid(1, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_float32(parts, dtype):
    attn, extras = parts
    grid = TokenGrid(2, 9, 14)
    x = seeded(1, grid.tokens, C)
    exact = run(parts, x, grid)
    half = run((copy.deepcopy(attn).to(dtype), copy.deepcopy(extras).to(dtype)), x.to(dtype), grid)
    assert half.dtype == dtype and relative_error(half, exact) < 1e-2


def test_rope_is_relative():
    """Positions may restart at 0 in every window, because only differences enter the attention scores."""
    grid, d = TokenGrid(3, 4, 5), 24
    table = rope_table(grid, d, torch.device("cpu"))
    q, k = (
        apply_rope(seeded(1, 1, 1, d, seed=i).expand(1, grid.tokens, 1, d), table).unflatten(1, grid)[0, ..., 0, :]
        for i in (0, 1)
    )
    here, there = (q[t, h, w] @ k[t + 1, h + 1, w - 1] for t, h, w in ((0, 0, 1), (1, 2, 4)))
    assert torch.allclose(here, there, atol=1e-5)
    assert not torch.allclose(here, q[0, 0, 1] @ k[1, 1, 1], atol=1e-2)


@pytest.mark.parametrize(("text", "blocks"), [("0-2, 27-29", {0, 1, 2, 27, 28, 29}), ("", set()), ("5 7", {5, 7})])
def test_blocks_from_text(text, blocks):
    assert parse_blocks(text) == blocks
    assert not blocks or parse_blocks(format_blocks(blocks)) == blocks
    assert parse_blocks(" Auto ") is None
    with pytest.raises(ValueError, match="numbers and ranges"):
        parse_blocks("0-2; 3")


class NoFloat64(TorchDispatchMode):
    """Simulates a device without float64: raises where a device other than the CPU would make a float64 tensor, as
    Apple's and some of Intel's do.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64 and tensor.device.type != "cpu":
                raise TypeError(f"{func} makes float64 on {tensor.device}")
        return out


def test_the_simulated_device_refuses_float64():
    with NoFloat64(), pytest.raises(TypeError, match="makes float64 on meta"):
        torch.zeros(2, device="meta").double()


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_rule_runs_in_float16_without_float64(name):
    device, grid = torch.device("meta"), TokenGrid(2, 9, 14)
    local, global_ = ABLATIONS[name]
    attn = ToyAttention(C, HEADS).to(device, torch.float16)
    extras = BlockExtras(ExtrasShape(C, rank=4, refined=True)).to(device, torch.float16)
    gates = Gates(*(torch.empty(1, 1, C, device=device) for _ in range(2)))
    for block in (0, 1):
        spec = block_spec(block, LocalConfig(**local), GlobalConfig(**global_), trained=True)
        x = torch.empty(1, grid.tokens, C, device=device, dtype=torch.float16)
        with NoFloat64():
            y = ultragen_attention(attn, x, grid, spec, extras, gates, Engine(dense_attention))
        assert (y.dtype, y.device, y.shape) == (torch.float16, device, x.shape)


@pytest.mark.parametrize(
    ("size", "base_tokens", "local", "hierarchical"),
    [
        ((68, 120), 1560, (3, 4), (1, 1)),  # 1080P on a model of 480P
        ((120, 68), 1560, (3, 4), (1, 1)),
        ((136, 240), 1560, (5, 6), (2, 3)),
        ((68, 120), 880, (3, 4), (2, 3)),  # 4K on the 5B
        ((30, 52), 1560, (1, 1), (1, 1)),  # no border to move
        ((30, 53), 1560, (1, 1), (1, 1)),  # hardly larger than a known frame
        ((34, 60), 1560, (2, 3), (1, 1)),
    ],
)
def test_windows_without_weights_are_no_larger_than_known_frames(size, base_tokens, local, hierarchical):
    assert untrained_windows(base_tokens, TokenGrid(21, *size), 2) == (local, hierarchical)


@pytest.mark.parametrize(
    ("global_", "trained", "local", "hierarchical", "has_global"),
    [
        ({}, True, LocalConfig(), (1, 1), True),
        ({}, False, LocalConfig(), (1, 1), False),  # the hierarchical branch sees the whole frame
        ({}, False, LocalConfig(), (2, 3), True),
        ({}, False, LocalConfig(hierarchical_windows=(1, 2)), (1, 1), True),
        ({}, False, LocalConfig(hierarchical_windows=(1, 1)), (2, 3), False),
        ({}, False, LocalConfig(hierarchical=False), (1, 1), True),
        ({}, False, LocalConfig(cross_window="off", hierarchical_windows=(1, 2)), (2, 3), False),
        ({}, False, LocalConfig(cross_window="swin"), (1, 1), True),  # which cuts the one window in odd blocks
        ({"compress_ratio": 2}, False, LocalConfig(), (1, 1), True),
        ({"enabled": True}, False, LocalConfig(), (1, 1), True),
        ({"enabled": False}, False, LocalConfig(), (2, 3), False),
        ({"enabled": False}, True, LocalConfig(), (2, 3), False),
    ],
)
def test_without_weights_one_branch_sees_the_whole_frame(global_, trained, local, hierarchical, has_global):
    for block in (0, 1):
        spec = block_spec(block, local, GlobalConfig(**global_), trained, WindowCounts((3, 4), hierarchical))
        assert (spec.global_ is not None) == has_global
        if global_ == {} and not has_global:
            assert len(window_borders(68, spec.hierarchical.num_windows, spec.hierarchical.shifted)) == 2


def test_without_weights_a_global_branch_at_half_resolution_is_the_hierarchical_one_again():
    """With windows over the whole frame both pool in the same way: their gates multiply, as docs/ablation.md says."""
    attn, grid = ToyAttention(C, HEADS), TokenGrid(2, 6, 10)
    shape = ExtrasShape(C, global_ratio=2)
    extras = BlockExtras(shape)
    extras.load_state_dict(initial_block(shape))
    x, whole = seeded(1, grid.tokens, C), LocalConfig(windows=(3, 4), hierarchical_windows=(1, 1))
    half, part = (torch.full((1, 1, 1), share) for share in (0.5, 0.2))

    def run(enabled, gates):
        spec = block_spec(0, whole, GlobalConfig(enabled=enabled), trained=False)
        return ultragen_attention(attn, x, grid, spec, extras.requires_grad_(False), gates, Engine(dense_attention))

    twice, once = run(True, Gates(part, half)), run(None, Gates(part * half, half))
    assert relative_error(twice, once) < 1e-6
    assert relative_error(run(None, Gates(part, half)), once) > 1e-2


def test_trained_weights_have_the_published_layout():
    """All switches spelled out equal the defaults, which keep their values with trained weights."""
    for block, (local, hierarchical) in enumerate([(4, 2), (5, 3)]):
        fine = BranchSpec(local, resize=True)
        coarse = BranchSpec(hierarchical, resize=True, lora_strength=1.0)
        published = BlockSpec(fine, coarse, BranchSpec(1, resize=True, key_from_query=True))
        assert block_spec(block) == block_spec(block, global_=GlobalConfig(enabled=True)) == published


def test_windows_of_the_user_come_first():
    near = WindowCounts((2, 3), (1, 1))
    specs = [
        block_spec(1, local, GlobalConfig(), False, near) for local in (LocalConfig(), LocalConfig(windows=(6, 7)))
    ]
    assert [(spec.local.num_windows, spec.hierarchical.num_windows) for spec in specs] == [(3, 1), (7, 1)]


@pytest.mark.parametrize(
    ("config", "values", "sentence"),
    [
        (GlobalConfig, {"compress_ratio": -3}, "compress_ratio must be a whole number of at least 1, got -3"),
        (GlobalConfig, {"compress_ratio": 2.5}, "got 2.5"),
        (GlobalConfig, {"lora_strength": math.nan}, "lora_strength must be a number of at least 0, got nan"),
        (GlobalConfig, {"lora_strength": math.inf}, "got inf"),
        (GlobalConfig, {"gate": GateLine(0.5, math.nan)}, "shares must be between 0 and 1, got 0.5 and nan"),
        (LocalConfig, {"gate": GateLine(-1, 1)}, "shares must be between 0 and 1, got -1 and 1"),
        (LocalConfig, {"windows": (0, 1)}, "windows must be two whole numbers of at least 1, got (0, 1)"),
        (LocalConfig, {"windows": (math.nan, 1)}, "windows must be two whole numbers"),
        (LocalConfig, {"hierarchical_windows": (1,)}, "hierarchical_windows must be two whole numbers"),
        (LocalConfig, {"uneven": "round"}, "uneven must be one of auto, resize, balanced, got 'round'"),
        (LocalConfig, {"cross_window": None}, "cross_window must be one of paper, off, swin, got None"),
    ],
)
def test_a_config_holds_no_values_that_mean_nothing(config, values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        config(**values)
