"""The halo: nothing outside it matters, everything in it does, and no tile is cut with slivers."""

from __future__ import annotations

import pytest
import torch
from helpers.vae_models import kit, narrow

from ultragen_core.vae import decode
from ultragen_core.vae.arithmetic import Sum
from ultragen_core.vae.geometry import Cut, Span, Window, output_size, places
from ultragen_core.vae.layers import open_layers
from ultragen_core.vae.walk import UnknownLayer, decoder_layers


@pytest.mark.parametrize("version,halo", [("2.1", 15), ("2.2", 15)])
def test_the_derived_halo_is_exactly_what_is_looked_at(version, halo):
    layers = decode.split(decoder_layers(narrow(version)))[1]
    size, tile = (60, 60), Window(Span(28, 31), Span(29, 32))
    unit = output_size(layers, size)[0] // size[0]
    where = places(layers, size, tile.times(unit), (False, False))
    given = where[0].given
    assert (given.rows.start, given.rows.stop) == (28 - halo, 31 + halo)

    def decoded(x):
        return open_layers(layers, where, kit())(Sum(x), True).total()

    x = torch.randn(1, 64, 1, *given.size, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(decoded(x)).all()
    for edge in (x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]):
        kept = edge.clone()
        edge.fill_(float("nan"))
        assert decoded(x).isnan().any(), "the outermost row or column is not needed"
        edge.copy_(kept)


@pytest.mark.parametrize("size", [(2160, 3840), (1088, 1920), (72, 1000)])
@pytest.mark.parametrize("tile", [64, 200, 512, 5000])
def test_tiles_cover_the_image_once(size, tile):
    cut, covered = Cut(size, tile, 8), torch.zeros(size, dtype=torch.int)
    for window in cut.tiles():
        assert max(window.size) <= max(tile, 8)
        rows, columns = window.clip(size).inside(Window.whole(size))
        covered[rows, columns] += 1
    assert (covered == 1).all()


def test_an_unknown_layer_is_refused():
    model = narrow("2.1")
    model.decoder.upsamples[4] = torch.nn.Conv3d(32, 32, 3)
    with pytest.raises(UnknownLayer, match="got a Conv3d"):
        decoder_layers(model)
