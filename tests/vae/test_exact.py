"""The tiles equal ComfyUI's own decode and encode of the whole frame."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers.support import seeded
from helpers.vae_models import UNITS, error, narrow, tiled_decode, tiled_encode

from ultragen_core.ops.vae import DeferredAdd, add_
from ultragen_core.vae.layers import Head, Residual, Upsample

# latent frames, latent rows and columns in units of 8 pixels
VIDEOS = [(1, 9, 11), (2, 9, 18), (3, 5, 17), (5, 4, 11), (6, 3, 19)]


def latent_size(version: str, rows: int, columns: int) -> tuple[int, int]:
    return rows * 8 // UNITS[version] + 1, columns * 8 // UNITS[version] + 1


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("frames,rows,columns", VIDEOS)
def test_decode_equals_comfyuis(version, frames, rows, columns):
    model = narrow(version)
    z = seeded(1, 4, frames, *latent_size(version, rows, columns), seed=1)
    reference = model.decode(z)
    for tile in (64, 112):
        assert error(tiled_decode(model, z, tile), reference) < 2e-6


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("frames,rows,columns", VIDEOS)
def test_encode_equals_comfyuis(version, frames, rows, columns):
    model = narrow(version)
    size = [side * UNITS[version] for side in latent_size(version, rows, columns)]
    # two frames more than a whole number of latent frames, which ComfyUI drops
    x = torch.rand(1, 3, 4 * frames - 1, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    reference = model.encode(x)
    for tile in (64, 112):
        assert error(tiled_encode(model, x, tile), reference) < 5e-6


@pytest.fixture(scope="module")
def whole():
    """`whole(rows, columns)`: a model, latents of that size, and what ComfyUI decodes; each size once."""
    model = narrow("2.1")

    @functools.cache
    def decoded(rows: int, columns: int):
        z = seeded(1, 4, 2, rows, columns, seed=2)
        return model, z, model.decode(z)

    return decoded


@pytest.mark.parametrize("tile", range(64, 177, 16))
def test_every_tile_size(whole, tile):
    model, z, reference = whole(19, 21)
    assert error(tiled_decode(model, z, tile), reference) < 2e-6


@pytest.mark.parametrize("layer", [Residual, Upsample, Head])
def test_a_halo_smaller_by_one_is_wrong(monkeypatch, whole, layer):
    """Every layer of one class loses the outermost column of its input, at every tile edge inside the image."""
    model, z, reference = whole(9, 33)
    assert error(tiled_decode(model, z, 64), reference) < 2e-6
    build = layer.build

    def starved(self, region, context):
        forward = build(self, region, context)

        def without_edge(x, first):
            total = add_(x, context.triton).clone()
            for inside, column in (
                (region.input.columns.start > 0, 0),
                (region.input.columns.stop < region.input_size[1], -1),
            ):
                if inside:
                    total[..., column] = 0
            return forward(DeferredAdd(total), first)

        return without_edge

    monkeypatch.setattr(layer, "build", starved)
    assert error(tiled_decode(model, z, 64), reference) > 1e-3
