"""The layer against numbers from the published code: every branch, gate and output, with antialiasing on and off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.golden import tiny_blocks
from helpers.support import DATA, dense_attention, relative_error
from safetensors.torch import load_file

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.gate import Gates
from ultragen_core.attention.layer import branch, ultragen_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.ops.depthwise import refine_blend_
from ultragen_core.rules.ultragen import block_spec

GOLDEN = load_file(DATA / "layer_io.safetensors")
PLAIN = load_file(DATA / "no_antialias.safetensors")
CASES = [(case, block) for case in range(3) for block in (1, 2)]
TOLERANCE = 1e-5
ENGINE = Engine(dense_attention)


@pytest.fixture(scope="module")
def tiny():
    return tiny_blocks()


def expected(case, block, name, antialias):
    key = f"case{case}.block{block}.{name}"
    return GOLDEN[key] if antialias else PLAIN.get(key, GOLDEN[key])


def spec_of(block, antialias, **changes):
    return block_spec(block, LocalConfig(antialias=antialias, **changes), GlobalConfig(), trained=True)


def inputs(case):
    return TokenGrid(*GOLDEN[f"case{case}.grid"].tolist()), GOLDEN[f"case{case}.x"]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("case", "block"), CASES)
@torch.no_grad()
def test_branches(tiny, case, block, antialias):
    grid, x = inputs(case)
    attn, extras, _ = tiny[block]
    spec = spec_of(block, antialias)
    for name, branch_spec, coarse in (
        ("local", spec.local, None),
        ("global", spec.global_, extras.global_branch),
        ("hierarchical", spec.hierarchical, extras.hierarchical_branch),
    ):
        y = branch(attn, x.unflatten(1, grid), branch_spec, ENGINE, coarse)
        if coarse is not None:
            weights = coarse.refine.weight, coarse.refine.bias
            blank, gate, strips = torch.zeros(1, *grid, 256), torch.zeros(1, 1, 256), [(0, grid.h)]
            y = refine_blend_(y, *weights, blank, gate, strips, triton=False)
        assert relative_error(y.flatten(1, 3), expected(case, block, name, antialias)) < TOLERANCE, name


@pytest.mark.parametrize("t", [250.0, 987.5])
@pytest.mark.parametrize(("case", "block"), CASES)
@torch.no_grad()
def test_gates(tiny, case, block, t):
    gates = tiny[block][2]
    for name in ("global", "hierarchical"):
        gate = getattr(gates, f"{name}_gate")(torch.tensor([t]))
        key = f"case{case}.block{block}.t{t:g}.gate_{name}"
        assert relative_error(gate, GOLDEN[key]) < TOLERANCE, name


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("case", "block", "t"), [*((*case, 250.0) for case in CASES), (0, 1, 987.5), (0, 2, 987.5)])
@torch.no_grad()
def test_layer(tiny, case, block, t, antialias):
    y = run_layer(tiny, case, block, t, spec_of(block, antialias))
    assert relative_error(y, expected(case, block, f"t{t:g}.out", antialias)) < TOLERANCE


@pytest.mark.parametrize("block", [1, 2])
@torch.no_grad()
def test_layer_through_the_triton_kernels(interpreted_kernels, tiny, block):
    y = run_layer(tiny, 1, block, 250.0, spec_of(block, antialias=False))
    assert relative_error(y, expected(1, block, "t250.out", False)) < TOLERANCE


@torch.no_grad()
def test_keys_of_the_global_branch_come_from_the_query_projection(tiny):
    spec = spec_of(1, antialias=True)
    spec = replace(spec, global_=replace(spec.global_, key_from_query=False))
    y = run_layer(tiny, 0, 1, 250.0, spec)
    assert relative_error(y, expected(0, 1, "t250.out", True)) > 100 * TOLERANCE


@torch.no_grad()
def test_uneven_grids_are_resized(tiny):
    y = run_layer(tiny, 1, 1, 250.0, spec_of(1, antialias=True, uneven="balanced"))
    assert relative_error(y, expected(1, 1, "t250.out", True)) > 100 * TOLERANCE


def run_layer(tiny, case, block, t, spec):
    grid, x = inputs(case)
    attn, extras, gates = tiny[block]
    t = torch.tensor([t])
    return ultragen_attention(
        attn, x, grid, spec, extras, Gates(gates.hierarchical_gate(t), gates.global_gate(t)), ENGINE
    )
