"""Convolutions in pairs of pixels, attention in blocks, copies, and the memory counter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.vae_models import narrow
from torch.nn import functional as F

from ultragen_core.ops.vae import add_
from ultragen_core.rectangle import Rectangle
from ultragen_core.vae import cached_conv, context, decode, functional, pixel_pairs
from ultragen_core.vae.geometry import TileGrid, tile_regions
from ultragen_core.vae.memory import peak_bytes
from ultragen_core.vae.parse import decoder_layers


@pytest.mark.parametrize("out_channels", [96, 3])
def test_a_convolution_of_pairs_is_that_of_pixels(out_channels):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 96, 4, 5, 8, generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(out_channels, 96, 3, 3, 3, generator=generator, dtype=torch.float64)
    pairs = pixel_pairs.as_pairs(x)
    y = functional.convolve(pairs, pixel_pairs.paired_weight(weight), None, (1, 1, 1)).value
    torch.testing.assert_close(pixel_pairs.as_pixels(y), F.conv3d(x, weight))
    assert pairs.data_ptr() == x.data_ptr() and torch.equal(pixel_pairs.as_pixels(pairs), x)


MEASURED = {"shape": (96, 96, 3, 3, 3), "dtype": torch.bfloat16, "stride": (1, 1, 1), "width": 974, "card": (9, 0)}


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (192, 192, 3, 3, 3)},
        {"shape": (96, 96, 1, 3, 3)},
        {"shape": (96, 96, 3, 3)},
        {"dtype": torch.float32},
        {"stride": (1, 2, 2)},
        {"width": 973},
        {"card": (8, 9)},
    ],
)
def test_pairs_are_for_what_was_measured(change, monkeypatch):
    def pays(shape, dtype, stride, width, card):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
        weight = SimpleNamespace(shape=shape, is_cuda=True, device="cuda", element_size=lambda: dtype.itemsize)
        return pixel_pairs.pairs_pay(weight, stride, width)

    assert pays(**MEASURED) and not pays(**MEASURED | change)


@pytest.mark.parametrize("in_pairs", [True, False])
def test_a_cached_convolution_is_that_of_the_whole_video(in_pairs, monkeypatch):
    """Of the first frame alone, in pixels, and of four frames at a time, in pairs too."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    monkeypatch.setattr(context, "_memory_formats", lambda device: formats)
    monkeypatch.setattr(cached_conv, "pairs_pay", lambda weight, stride, width: in_pairs)
    module, size = torch.nn.Conv3d(96, 96, 3).double().requires_grad_(False), (16, 12)
    video = torch.randn(1, 96, 9, *size, dtype=torch.float64)
    run = context.Context(lambda conv: (conv.weight, conv.bias), video.device, video.dtype, lambda: None)
    conv, parts = cached_conv.CachedConv(run, module, Rectangle.whole(size).grow(1), size), []
    for part in video.split((1, 4, 4), dim=2):
        conv.input_buffer(part.shape[2]).copy_(part)
        parts.append(add_(conv(), triton=False))
    torch.testing.assert_close(torch.cat(parts, dim=2), module(F.pad(video, (1, 1, 1, 1, 2, 0))))


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
