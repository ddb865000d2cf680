"""The two VAE nodes, as ComfyUI runs them."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.support import seeded
from helpers.vae_models import toy_vae


@pytest.fixture(scope="module")
def vae():
    return toy_vae()


@pytest.fixture(scope="module")
def node(pack):
    return sys.modules[f"{pack.__name__}.nodes.vae"]


def test_tiling_then_core_decode_equals_our_decode(node, vae):
    z = seeded(1, 16, 2, 9, 10)
    exact = node.UltraGenVAETiling.execute(vae, 64).result[0]
    ours = node.UltraGenVAEDecode.execute({"samples": z}, vae, 0)
    core = vae.decode(z)[0]
    assert ours.ui is None and ours.result[0].shape == core.shape
    for images in (exact.decode(z)[0], ours.result[0]):
        assert (images - core).abs().max() < 2e-6


def test_the_number_of_gpus_is_passed_on(node, vae, monkeypatch):
    asked = []
    monkeypatch.setattr(node, "decode", lambda *given: (asked.append(given[2:]), torch.zeros(1))[1])
    node.UltraGenVAEDecode.execute({"samples": torch.zeros(1, 16, 1, 4, 4)}, vae, 64)
    node.UltraGenVAEDecode.execute({"samples": torch.zeros(1, 16, 1, 4, 4)}, vae, 64, 3)
    assert asked == [(64, 1), (64, 3)]
    for given, expected in (((), 1), ((0,), 0)):
        assert node.UltraGenVAETiling.execute(vae, 64, *given).result[0].exact_gpus == expected


def test_tile_is_checked_before_anything_runs(node):
    for tile, valid in ((0, True), (32, False), (64, True)):
        assert (node.UltraGenVAETiling.validate_inputs(tile) is True) == valid


def test_the_node_shows_why_a_vae_falls_back_to_comfyui(node):
    other = toy_vae()
    other.first_stage_model.decoder.middle[1] = torch.nn.Identity()
    said = node.UltraGenVAETiling.execute(other, 0).ui.as_dict()["text"]
    assert "Left to ComfyUI's own decode" in said[0]


def test_schemas(node):
    for cls in node.NODES:
        assert cls.GET_SCHEMA().category == "UltraGen"
