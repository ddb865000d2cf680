"""Every Triton form against the plain form of the same function, in Triton's interpreter."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.support import relative_error, seeded
from torch import nn

from ultragen_core.attention import engine, rope
from ultragen_core.grid import TokenGrid, cut_grid
from ultragen_core.ops import depthwise, dispatch, gather, norm_rope, quantize, resample, residual_norm, to_fp8

C = 24
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def kernels(name: str):
    return importlib.import_module(f"ultragen_core.ops.{name}")


@pytest.fixture
def both(interpreted_kernels, monkeypatch):
    """run(function, make_arguments): in its Triton form, whose kernel must really run, and in its plain form."""
    used = []
    for module, names in {
        "resample_kernels": ["resample"],
        "norm_rope_kernels": ["norm_rope_"],
        "depthwise_kernels": ["compress", "refine_blend_"],
        "residual_norm_kernels": ["residual_norm_"],
        "quantize_kernels": ["quantize", "dequantize"],
        "to_fp8_kernels": ["to_fp8"],
        "gather_kernels": ["gather"],
    }.items():
        for name in names:
            kernel = getattr(kernels(module), name)
            monkeypatch.setattr(kernels(module), name, lambda *a, kernel=kernel: used.append(kernel) or kernel(*a))

    def run(function, make_arguments):
        fast = function(*make_arguments(), triton=True)
        count = len(used)
        slow = function(*make_arguments(), triton=False)
        assert count and len(used) == count, "one form ran twice"
        return fast, slow

    return run


@pytest.mark.parametrize(("size", "windows"), [((6, 10), 2), ((9, 12), 3), ((4, 8), 4), ((7, 11), 3), ((5, 5), 1)])
def test_windows_there_and_back(both, size, windows):
    x, grid = seeded(2, 2, 6, 10, C), TokenGrid(2, *size)
    regions = cut_grid(grid, windows)
    parts = []
    for region in regions:
        fast, slow = both(resample.to_windows, lambda region=region: (x, size, region, False))
        assert fast.shape == slow.shape and relative_error(fast, slow) < 1e-6
        parts.append(slow)
    if len(regions) == 1 and windows > 1:
        given = [list(parts), list(parts)]
        left = iter(given)
        fast, slow = both(resample.from_windows_, lambda: (next(left), regions, grid, (6, 10), False))
        assert fast.shape == slow.shape == x.shape and relative_error(fast, slow) < 1e-6
        assert given == [[], []], "a part is held longer than needed"


def test_moving_tokens_alone_is_exact(both):
    x, region = seeded(1, 2, 6, 9, C), cut_grid(TokenGrid(2, 6, 9), 3)[0]
    fast, slow = both(resample.to_windows, lambda: (x, (6, 9), region, False))
    assert torch.equal(fast, slow)


def test_norm_and_rope(both):
    norm = nn.RMSNorm(C, eps=1e-6)
    norm.weight.copy_(seeded(C))
    table = rope.rope_table(TokenGrid(2, 3, 2), C // 2, CPU)
    weight_of = engine.Engine(None).weight
    fast, slow = both(norm_rope.norm_rope_, lambda: (seeded(3, 12, C), norm, weight_of, table, 2))
    assert relative_error(fast, slow) < 1e-6


@pytest.mark.parametrize("ratio", [2, 4])
def test_compression(both, ratio):
    conv = nn.Conv2d(C, C, ratio, stride=ratio, groups=C)
    fast, slow = both(depthwise.compress, lambda: (seeded(2, 2, 9, 14, C), conv.weight, conv.bias, ratio))
    assert fast.shape == slow.shape and relative_error(fast, slow) < 1e-6


@pytest.mark.parametrize(
    ("frames", "gates", "height", "coarse", "rows"),  # gates: batch and channels; rows at a time
    [
        (1, (1, C), 3, (2, 9), None),
        (3, (2, C), 3, (3, 18), None),
        (3, (1, C), 4, (2, 9), 2),
        (1, (2, C), 3, (2, 9), 1),
        (1, (2, 1), 3, (2, 9), None),
    ],
)
def test_refinement_and_blend(both, frames, gates, height, coarse, rows):
    conv = nn.Conv3d(C, C, 3, padding=1, groups=C)
    shape, low = (2, frames, height, 18, C), (2, frames, *coarse, C)
    gate = seeded(gates[0], 1, C).sigmoid()[..., : gates[1]]
    strips = engine.pieces(seeded(*shape), 2, rows and 2 * frames * rows * 18)
    fast, slow = both(
        depthwise.refine_blend_,
        lambda: (seeded(*low), conv.weight, conv.bias, seeded(*shape, seed=1), gate, strips),
    )
    assert relative_error(fast, slow) < 1e-6


@pytest.mark.parametrize("batch", [1, 2], ids=["one timestep", "a timestep an item"])
@pytest.mark.parametrize("gated", [True, False])
def test_residual_and_norm(both, gated, batch):
    x, y = seeded(2, 5, C), seeded(2, 5, C, seed=1)
    # As a block has them: parts of one tensor, with its strides.
    gate, scale, shift = seeded(batch, 6, C, seed=2).chunk(6, dim=1)[:3]
    gate = gate if gated else None
    total, total_plain = both(residual_norm.residual_, lambda: (x, y.clone(), gate))
    normed, normed_plain = both(residual_norm.norm, lambda: (x, scale, shift, 1e-6))
    assert relative_error(total, total_plain) < 1e-6 and relative_error(normed, normed_plain) < 1e-6
    fast, slow = both(residual_norm.residual_norm_, lambda: (x, y.clone(), gate, scale, shift, 1e-6))
    for one, other in zip(fast, slow, strict=True):
        assert relative_error(one, other) < 1e-6
    assert torch.equal(fast[0], total)
    assert relative_error(fast[1], residual_norm.norm(total, scale, shift, 1e-6, False)) < 1e-6


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("tokens", "spans"), [(1, 1), (20, 1), (35, 3), (32, 2)])
def test_quantised_and_back(both, centred, tokens, spans, monkeypatch):
    if spans > 1:
        monkeypatch.setattr(kernels("quantize_kernels"), "SPAN", kernels("quantize_kernels").TOKENS)
    x = seeded(2, tokens, C) + 5 * seeded(1, 1, C, seed=1)
    fast, slow = both(quantize.quantize, lambda: (x, centred))
    # A value between two that 8 bits have may go either way.
    assert fast.scale.shape == (1,) and relative_error(fast.scale, slow.scale) < 1e-6
    assert fast.values.dtype == slow.values.dtype == quantize.FP8 and fast.values.shape == x.shape
    assert (fast.values.float() != slow.values.float()).float().mean() < 1e-2
    if centred:
        assert fast.mean.shape == (2, 1, x.shape[-1]) and relative_error(fast.mean, slow.mean) < 1e-6
    else:
        assert fast.mean is slow.mean is None
    for dtype in (torch.float32, torch.bfloat16):
        back, back_plain = both(quantize.dequantize, lambda dtype=dtype: (slow, dtype))
        assert back.dtype == dtype and relative_error(back.float(), back_plain.float()) < 1e-2
    assert relative_error(back.float(), x) < 5e-2


@pytest.mark.parametrize(
    "module",
    (
        *dispatch.ATTENTION_KERNEL_MODULES,
        *dispatch.BLOCK_KERNEL_MODULES,
        *dispatch.FP8_KERNEL_MODULES,
        *dispatch.FP8_LINEAR_KERNEL_MODULES,
    ),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_at_first_use_passes(interpreted_kernels, module, dtype):
    kernels(module).check(CPU, dtype)


def test_the_check_at_first_use_can_fail(interpreted_kernels, monkeypatch):
    module = kernels("depthwise_kernels")
    monkeypatch.setattr(module, "compress", lambda x, *a: x[:, :, ::2, ::2])
    with pytest.raises(RuntimeError, match="Triton's compress is off"):
        module.check(CPU, torch.float32)


def test_kernels_stay_away_from_training(interpreted_kernels):
    assert dispatch.triton_for(seeded(2), dispatch.ATTENTION_KERNEL_MODULES)
    with torch.enable_grad():
        assert not dispatch.triton_for(seeded(2), dispatch.ATTENTION_KERNEL_MODULES)  # whose weights may learn


def test_one_switch_for_all_kernels(monkeypatch):
    pytest.importorskip("triton", reason="no Triton here; it comes with PyTorch for a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    asked = []
    monkeypatch.setattr(dispatch, "_kernels_work", lambda *key: asked.append(key) or True)
    assert dispatch.triton_for(seeded(2), ("any",)) and asked
    monkeypatch.setenv("ULTRAGEN_TRITON", "0")
    assert not dispatch.triton_for(seeded(2), ("any",))


def test_kernels_that_fail_leave_plain_pytorch(monkeypatch, caplog):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with caplog.at_level("INFO"):
        assert not dispatch.triton_for(seeded(2), ("no_such_kernels",))
    assert "plain PyTorch instead of Triton kernels" in caplog.text


def test_kernels_are_checked_once_on_every_device(monkeypatch):
    """Where each of eight GPUs uses five groups of kernels in turn."""
    checked = []
    monkeypatch.setattr(dispatch, "kernels", lambda name: SimpleNamespace(check=lambda *key: checked.append(key)))
    groups, devices = [(f"group_{number}",) for number in range(5)], [torch.device("cuda", i) for i in range(8)]
    for _ in range(2):
        assert all(dispatch._kernels_work(group, device, torch.float32) for device in devices for group in groups)
    assert len(checked) == len(groups) * len(devices)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory"), MemoryError()],
)
def test_kernels_that_find_no_memory_are_checked_again(monkeypatch, error):
    def check(device, dtype):
        tried.append(device)
        if len(tried) == 1:
            raise error

    tried, name = [], f"scarce_{type(error).__name__}"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, f"ultragen_core.ops.{name}", SimpleNamespace(check=check))
    assert [dispatch.triton_for(seeded(2), (name,)) for _ in range(3)] == [False, True, True]
    assert len(tried) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [None, 0.03])
@pytest.mark.parametrize("gelu", [False, True])
def test_inputs_of_products_in_fp8(both, dtype, scale, gelu):
    x = 200 * seeded(3, 7, 111) ** 3
    x = torch.cat([x.flatten(), seeded(500), torch.tensor([-0.0, torch.nan, torch.inf, 448, 465])]).to(dtype)
    scale = None if scale is None else torch.tensor(scale)
    fast, slow = both(to_fp8.to_fp8, lambda: (x, scale, gelu))
    assert fast.dtype == slow.dtype == quantize.FP8 and fast.shape == x.shape and not slow[:-4].float().isnan().any()
    if not gelu:
        torch.testing.assert_close(fast.float(), slow.float(), rtol=0, atol=0, equal_nan=True)
    fast, slow = (each.view(torch.uint8).int() & 127 for each in (fast, slow))
    assert (fast - slow).abs().max() <= 1, "not neighbours in fp8"
    assert (fast != slow).float().mean() < 3e-3


@pytest.mark.parametrize("lengths", [[4], [3, 0, 5], [1] * 8, [2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize(("width", "dtype"), [(9, torch.float32), (600, torch.int64), (8, torch.bfloat16)])
def test_rows_of_several_parts(both, lengths, width, dtype):
    parts = [(100 * seeded(length, width, seed=index)).to(dtype) for index, length in enumerate(lengths)]
    order = torch.randint(0, sum(lengths), (17,), generator=torch.Generator().manual_seed(0))
    fast, slow = both(gather.gather, lambda: (parts, order))
    assert torch.equal(fast, slow) and torch.equal(slow, torch.cat(parts)[order])
