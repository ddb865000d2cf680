"""The halo holds exactly the pixels that matter, and tiles cover the image without slivers."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.support import seeded
from helpers.vae_models import context, narrow

from ultragen_core.rectangle import Rectangle, Span
from ultragen_core.vae import decode
from ultragen_core.vae.geometry import DecodedArea, TileGrid, output_size, tile_regions
from ultragen_core.vae.layers import build_all
from ultragen_core.vae.parse import UnsupportedLayer, decoder_layers, encoder_layers


@pytest.mark.parametrize("version,halo", [("2.1", 15), ("2.2", 15)])
def test_the_halo_is_exactly_what_the_layers_read(version, halo):
    layers = decode.split_layers(decoder_layers(narrow(version)))[1]
    size, tile = (60, 60), Rectangle(Span(28, 31), Span(29, 32))
    unit = output_size(layers, size)[0] // size[0]
    regions = tile_regions(layers, size, tile.upscale(unit), (False, False))
    received = regions[0].input
    assert (received.rows.start, received.rows.stop) == (28 - halo, 31 + halo)

    def decoded(x):
        return build_all(layers, regions, context())(x, True)

    x = seeded(1, 64, 1, *received.size)
    assert torch.isfinite(decoded(x)).all()
    for edge in (x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]):
        kept = edge.clone()
        edge.fill_(float("nan"))
        assert decoded(x).isnan().any(), "the outermost row or column is not needed"
        edge.copy_(kept)


@pytest.mark.parametrize("size", [(2160, 3840), (1088, 1920), (72, 1000)])
@pytest.mark.parametrize("tile", [64, 200, 512, 5000])
def test_tiles_cover_the_image_once(size, tile):
    grid, covered = TileGrid(size, tile, 8), torch.zeros(size, dtype=torch.int)
    for tile_rect in grid.tiles():
        assert max(tile_rect.size) <= max(tile, 8)
        rows, columns = tile_rect.clip(size).slices
        covered[rows, columns] += 1
    assert (covered == 1).all()


def test_an_unsupported_layer_is_refused():
    model = narrow("2.1")
    model.decoder.upsamples[4] = torch.nn.Conv3d(32, 32, 3)
    with pytest.raises(UnsupportedLayer, match="got a Conv3d"):
        decoder_layers(model)


@pytest.mark.parametrize("layers", [decoder_layers, encoder_layers])
@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_other_patches_and_time_kernels_are_refused(layers, version):
    """As ComfyUI later than 0.33.0 makes them for images, from Wan 2.2's class."""
    model, patch = narrow(version), {"2.1": 1, "2.2": 2}[version]
    assert layers(model)
    model.patch_size = 4
    with pytest.raises(UnsupportedLayer, match=f"patches of {patch} pixels and .* 3 frames, got 4 and 3"):
        layers(model)
    model.patch_size, conv = patch, model.decoder.conv1
    model.decoder.conv1 = type(conv)(conv.in_channels, conv.out_channels, (1, 3, 3), padding=(0, 1, 1))
    with pytest.raises(UnsupportedLayer, match=f"got {patch} and 1"):
        layers(model)


def test_an_area_holds_what_was_added_to_it():
    """Random rectangles, overlapping or not, against a picture of them."""
    draw = random.Random(0)

    def rect() -> Rectangle:
        spans = []
        for side in (12, 9):
            start = draw.randrange(side)
            spans.append(Span(start, draw.randrange(start, side) + 1))
        return Rectangle(*spans)

    found = set()
    for _ in range(30):
        area, picture = DecodedArea((12, 9)), torch.zeros(12, 9, dtype=torch.bool)
        for _ in range(8):
            added, asked = rect(), rect()
            area.add(added)
            picture[added.slices] = True
            held = bool(picture[asked.slices].all())
            assert area.holds(asked) == held
            found.add(held)
    assert found == {True, False}
