"""The fused kernel against plain PyTorch (through Triton's interpreter), the memory meter, the drain."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers.vae_models import narrow

from ultragen_core.vae import decode
from ultragen_core.vae.arithmetic import Sum, attend, paste
from ultragen_core.vae.geometry import Cut, places
from ultragen_core.vae.memory import need
from ultragen_core.vae.walk import decoder_layers

KERNEL = """
import torch
from ultragen_core.vae import arithmetic, kernels
for dtype in (torch.float32, torch.bfloat16):
    arithmetic._try_kernels(kernels, torch.device("cpu"), dtype)
value = torch.randn(1, 3, 6, 5, 96).permute(0, 4, 1, 2, 3)
bias, gamma = torch.randn(96), torch.randn(96)
norm = arithmetic.Norm(96 ** 0.5, gamma, None)
right, made = (torch.zeros(1, 3, 4, 5, 96).permute(0, 4, 1, 2, 3)[..., 1:] for _ in range(2))
crop = (slice(1, 5), slice(1, 5))
untouched = value.clone()
kernels.norm_silu(value, bias, None, False, gamma, made, norm.scale, arithmetic.EPS, (1, 1))
assert torch.equal(value, untouched)
arithmetic.norm_silu(arithmetic.Sum(value, bias), norm, right, crop, keep=False)
assert (made - right).abs().max() < 1e-5 * right.abs().max()
"""


def test_kernel_equals_plain_pytorch(monkeypatch):
    pytest.importorskip("triton", reason="Triton comes with PyTorch for a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", sys.path[-1])
    done = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plans_are_tried_for_large_maps_where_trying_takes_little_memory(monkeypatch):
    from ultragen_core.vae import arithmetic

    large, small = (torch.empty(size, device="meta") for size in (arithmetic.PLANNED_FROM, 1000))
    wide, narrow = (torch.empty(channels, 96, 3, 3, 3, device="meta") for channels in (96, 3))
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    assert [arithmetic._plans_pay(large, wide), arithmetic._plans_pay(small, wide)] == [True, False]
    assert not arithmetic._plans_pay(large, narrow)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert not arithmetic._plans_pay(large, wide)


def test_sum_adds_bias_and_skip():
    value, skip, bias = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3), torch.randn(4)
    expected = value + bias.view(1, 4, 1, 1, 1) + skip
    torch.testing.assert_close(Sum(value, bias, skip).total(), expected)


def test_attention_in_blocks_equals_attention(monkeypatch):
    q, k, v = (torch.randn(50, 16, dtype=torch.float64) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    monkeypatch.setattr("ultragen_core.vae.arithmetic.SCORE_BYTES", 7 * 50 * 8)
    seen = []
    torch.testing.assert_close(attend(q, k, v, lambda: seen.append(1)), expected)
    assert len(seen) == 8  # blocks of 7 queries, an interruption can come before each


def test_paste_writes_its_part_only():
    source, out = torch.randn(1, 8, 2, 3, 4), torch.zeros(1, 8, 2, 5, 6)
    paste(out[..., 1:4, 1:5], source)
    assert torch.equal(out[..., 1:4, 1:5], source) and out.count_nonzero() == source.count_nonzero()


def test_memory_need_grows_with_the_tile_not_with_the_image():
    layers = decode.split(decoder_layers(narrow("2.1")))[1]

    def tile_need(latents, tile):
        cut = Cut((latents * 8, latents * 8), tile, 8)
        return need(layers, places(layers, (latents, latents), next(cut.tiles()), cut.clip), 64, (1, 1), torch.float32)

    assert tile_need(128, 128) == tile_need(256, 128)
    assert 2.2 < tile_need(128, 256) / tile_need(128, 128) < 4
