"""Any size, any tile: tiles cover the image once, each layer receives what it needs, and the pixels are ComfyUI's."""

from __future__ import annotations

import pytest
import torch
from helpers.strategies import very_few
from helpers.support import seeded
from helpers.vae_models import UNITS, error, narrow, tiled_decode
from hypothesis import given
from hypothesis import strategies as st

from ultragen_core.vae import decode, encode
from ultragen_core.vae.geometry import TileGrid, output_size, tile_regions
from ultragen_core.vae.parse import decoder_layers, encoder_layers

versions = st.sampled_from(list(UNITS))
sides, points = st.integers(1, 300), st.integers(1, 60)


@given(st.tuples(sides, sides), st.integers(1, 400), st.sampled_from([1, 8, 16]))
def test_tiles_cover_an_image_once_and_are_alike(size, tile, unit):
    grid, covered = TileGrid(size, tile, unit), torch.zeros(size, dtype=torch.int)
    for tile_rect in grid.tiles():
        assert tile_rect.size == grid.tile_size and max(tile_rect.size) <= max(tile, unit)
        assert not any(side % unit for side in tile_rect.size)
        rows, columns = tile_rect.clip(size).slices
        covered[rows, columns] += 1
    assert (covered == 1).all()


@pytest.fixture(scope="module")
def tiled_layers():
    """The layers that run in tiles, and how many pixels one latent pixel stands for, by version and direction."""
    found = {}
    for version, unit in UNITS.items():
        model = narrow(version)
        found[version, "decode"] = decode.split_layers(decoder_layers(model))[1], unit
        found[version, "encode"] = encode.split_layers(encoder_layers(model))[0], unit
    return found


@given(versions, st.sampled_from(["decode", "encode"]), st.tuples(points, points), st.integers(4, 40))
def test_every_layer_receives_what_the_next_ones_need(tiled_layers, version, direction, latents, tile):
    layers, unit = tiled_layers[version, direction]
    if direction == "encode":
        size, grid = tuple(side * unit for side in latents), TileGrid(latents, tile, 1)
    else:
        size = latents
        grid = TileGrid(output_size(layers, size), tile * unit, unit)
    assert output_size(layers, size) == grid.size
    shapes = set()
    for tile_rect in grid.tiles():
        regions = tile_regions(layers, size, tile_rect, grid.clip)
        assert [region.output for region in regions[:-1]] == [region.input for region in regions[1:]]
        for layer, region in zip(layers, regions, strict=True):
            inside = region.input.clip(region.input_size)
            needed = layer.receptive_field(region.output).clip(region.input_size)
            assert inside.hull(needed) == inside and min(inside.size) > 0
        assert regions[-1].output.clip(grid.size) == tile_rect.clip(grid.size)
        shapes.add(tuple(region.input.size for region in regions))
    assert len(shapes) == 1 or any(grid.clip), "where tiles may reach over the edge, all are of one shape"


@pytest.fixture(scope="module")
def vaes():
    return {version: narrow(version, width=8).double() for version in UNITS}


@very_few
@given(versions, st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 14)), st.sampled_from([64, 80, 200]))
def test_decode_equals_comfyuis(vaes, version, latent, tile):
    """In float64, where rounding hides nothing: in float32 ComfyUI itself was seen 2.8e-6 off at this width."""
    z = seeded(1, 4, *latent).double()
    assert error(tiled_decode(vaes[version], z, tile), vaes[version].decode(z)) < 1e-12
