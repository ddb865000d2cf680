"""The tiles equal ComfyUI's own decode and encode of the whole frame."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers.vae_models import UNITS, error, narrow, tiled_decode, tiled_encode

from ultragen_core.vae.arithmetic import Sum
from ultragen_core.vae.layers import Head, Residual, Upsample

# latent frames, latent rows and columns in units of 8 pixels
VIDEOS = [(1, 9, 11), (2, 9, 18), (3, 5, 17), (5, 4, 11), (6, 3, 19)]


def latent_size(version: str, rows: int, columns: int) -> tuple[int, int]:
    return rows * 8 // UNITS[version] + 1, columns * 8 // UNITS[version] + 1


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("frames,rows,columns", VIDEOS)
def test_decode_equals_core(version, frames, rows, columns):
    model = narrow(version)
    z = torch.randn(1, 4, frames, *latent_size(version, rows, columns), generator=torch.Generator().manual_seed(1))
    core = model.decode(z)
    for tile in (64, 112):
        assert error(tiled_decode(model, z, tile), core) < 2e-6


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("frames,rows,columns", VIDEOS)
def test_encode_equals_core(version, frames, rows, columns):
    model = narrow(version)
    size = [side * UNITS[version] for side in latent_size(version, rows, columns)]
    # two frames more than a whole number of latent frames: core drops them
    x = torch.rand(1, 3, 4 * frames - 1, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    core = model.encode(x)
    for tile in (64, 112):
        assert error(tiled_encode(model, x, tile), core) < 5e-6


@pytest.fixture(scope="module")
def whole():
    """`whole(rows, columns)`: a model, latents of that size, and what core decodes; each size once."""
    model = narrow("2.1")

    @functools.cache
    def decoded(rows: int, columns: int):
        z = torch.randn(1, 4, 2, rows, columns, generator=torch.Generator().manual_seed(2))
        return model, z, model.decode(z)

    return decoded


@pytest.mark.parametrize("tile", range(64, 177, 16))
def test_every_tile_size(whole, tile):
    model, z, core = whole(19, 21)
    assert error(tiled_decode(model, z, tile), core) < 2e-6


@pytest.mark.parametrize("layer", [Residual, Upsample, Head])
def test_a_halo_smaller_by_one_is_wrong(monkeypatch, whole, layer):
    """The outermost column of what a layer is given, taken away at every tile edge inside the image."""
    model, z, core = whole(9, 33)
    assert error(tiled_decode(model, z, 64), core) < 2e-6
    derived = layer.open

    def starved(self, place, kit):
        run = derived(self, place, kit)

        def without_edge(x, first):
            total = x.total().clone()
            for inside, column in (
                (place.given.columns.start > 0, 0),
                (place.given.columns.stop < place.size_in[1], -1),
            ):
                if inside:
                    total[..., column] = 0
            return run(Sum(total), first)

        return without_edge

    monkeypatch.setattr(layer, "open", starved)
    assert error(tiled_decode(model, z, 64), core) > 1e-3
