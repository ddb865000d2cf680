"""Attention in blocks, copies, the choice of cuDNN's plans, and the memory counter."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers.vae_models import narrow

from ultragen_core.vae import autotune, decode, functional
from ultragen_core.vae.geometry import TileGrid, tile_regions
from ultragen_core.vae.memory import peak_bytes
from ultragen_core.vae.parse import decoder_layers


@pytest.mark.parametrize(
    "capability, weight, pays",
    [
        ((9, 0), (96, 96, 3, 3, 3), True),
        ((9, 0), (96, 96, 3, 3), True),
        ((9, 0), (384, 384, 3, 3, 3), False),  # cuDNN's first plan is as fast
        ((8, 9), (384, 384, 3, 3, 3), True),
        ((8, 9), (3, 96, 3, 3, 3), False),
        ((8, 9), (96, 96, 1, 3, 3), False),  # of the first frame
    ],
)
def test_cudnn_tries_plans_for_large_maps_where_its_first_may_be_slow(capability, weight, pays, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    large, small = (torch.empty(size, device="meta") for size in (autotune.AUTOTUNED_FROM, 1000))
    assert autotune.autotune_pays(large, torch.empty(weight, device="meta")) == pays
    assert not autotune.autotune_pays(small, torch.empty(weight, device="meta"))


@pytest.fixture
def allocators(monkeypatch):
    """`allocators(name, limit)` -> bytes in use and in all, and the list of limits that are set from now on."""

    def pretend(allocator: str, limit: float) -> tuple[int, int, list[float]]:
        used, total, fractions = 2**30, 2**33, []
        for name, stand_in in {
            "get_allocator_backend": lambda: allocator,
            "memory_allocated": lambda device: used,
            "get_device_properties": lambda device: SimpleNamespace(total_memory=total),
            "get_per_process_memory_fraction": lambda device: limit,
            "set_per_process_memory_fraction": lambda share, device: fractions.append(share),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(autotune, "_searched", threading.local())
        return used, total, fractions

    return pretend


@pytest.mark.parametrize(
    "allocator, limit",
    [("cudaMallocAsync", 1.0), ("cudaMallocAsync", 0.001), ("cudaMallocAsync", 1.2e8), ("native", 1.0)],
)
def test_the_search_for_a_plan_is_given_little_memory(allocator, limit, allocators):
    used, total, fractions = allocators(allocator, limit)
    x, weight = torch.empty(1, 96, 3, 64, 64, dtype=torch.bfloat16), torch.empty(48, 96, 3, 3, 3, device="meta")
    with contextlib.suppress(KeyError), autotune.bounded_search(x, weight, (1, 1, 1)):
        raise KeyError  # a convolution that fails leaves the limit as it was
    expected = (used + 48 * 3 * 64 * 64 * 2 + autotune.SEARCH_BYTES) / total
    assert fractions == ([] if allocator == "native" else [min(expected, limit), min(limit, 1.0)])


def test_only_the_first_convolution_of_a_kind_in_a_thread_is_a_search(allocators):
    *_, fractions = allocators("cudaMallocAsync", 1.0)
    x, weight = torch.empty(1, 4, 3, 8, 8), torch.empty(4, 4, 3, 3, 3)
    counts = []

    def convolve(x, stride=(1, 1, 1)):
        with autotune.bounded_search(x, weight, stride):
            counts.append(len(fractions))

    convolve(x)
    convolve(x)
    convolve(x[..., :-1])
    convolve(x, (1, 2, 2))
    convolve(x.to(memory_format=torch.channels_last_3d))
    other = threading.Thread(target=convolve, args=(x,))
    other.start()
    other.join()
    assert counts == [1, 2, 3, 5, 7, 9] and len(fractions) == 10


def test_attention_in_blocks_equals_attention(monkeypatch):
    q, k, v = (torch.randn(50, 16, dtype=torch.float64) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    monkeypatch.setattr(functional, "SCORE_BYTES", 7 * 50 * 8)
    seen = []
    torch.testing.assert_close(functional.attend(q, k, v, lambda: seen.append(1)), expected)
    assert len(seen) == 8  # blocks of 7 queries, an interruption can come before each


def test_a_copy_writes_its_part_only():
    source, out = torch.randn(1, 8, 2, 3, 4), torch.zeros(1, 8, 2, 5, 6)
    functional.copy_(out[..., 1:4, 1:5], source)
    assert torch.equal(out[..., 1:4, 1:5], source) and out.count_nonzero() == source.count_nonzero()


def test_memory_grows_with_the_tile_not_with_the_image():
    layers = decode.split_layers(decoder_layers(narrow("2.1")))[1]

    def tile_need(latents, tile):
        grid = TileGrid((latents * 8, latents * 8), tile, 8)
        regions = tile_regions(layers, (latents, latents), next(grid.tiles()), grid.clip)
        return peak_bytes(layers, regions, 64, (1, 1), torch.float32)

    assert tile_need(128, 128) == tile_need(256, 128)
    assert 2.2 < tile_need(128, 256) / tile_need(128, 128) < 4
