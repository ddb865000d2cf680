"""The two VAE nodes, as ComfyUI runs them."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.vae_models import toy_vae


@pytest.fixture(scope="module")
def vae():
    return toy_vae()


@pytest.fixture(scope="module")
def node(pack):
    return sys.modules[f"{pack.__name__}.nodes.vae"]


def test_tiling_then_core_decode_equals_our_decode(node, vae):
    z = torch.randn(1, 16, 2, 9, 10, generator=torch.Generator().manual_seed(0))
    exact = node.UltraGenVAETiling.execute(vae, 64).result[0]
    ours = node.UltraGenVAEDecode.execute({"samples": z}, vae, 0)
    core = vae.decode(z)[0]
    assert ours.ui is None and ours.result[0].shape == core.shape
    for images in (exact.decode(z)[0], ours.result[0]):
        assert (images - core).abs().max() < 2e-6


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
