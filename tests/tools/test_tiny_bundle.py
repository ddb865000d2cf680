"""The tiny models are in the published formats: same keys and shape rules as real files."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.support import DATA
from safetensors.torch import load_file, save_file

from tools import tiny_bundle
from training.miniature import WEIGHTS
from training.miniature.packed import packed

# Made with the published code: blocks 1 and 2 hierarchical, as in the tiny bundle.
REFERENCE = "tiny_ultragen.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_bundle.write(folder, random=True)
    return folder


@pytest.fixture(scope="module")
def checkpoint(base):
    return torch.load(base / tiny_bundle.CHECKPOINT, weights_only=True)


def test_checkpoint_has_exactly_the_published_keys_and_shapes(checkpoint):
    reference = load_file(DATA / REFERENCE)
    assert checkpoint.keys() == reference.keys()
    feed_forward = re.compile(r"\.ffn\.")
    for key, tensor in reference.items():
        if not feed_forward.search(key):  # the one width in which they differ
            assert checkpoint[key].shape == tensor.shape, key


def test_weights_are_finite_and_the_same_every_time(base, checkpoint, tmp_path):
    tiny_bundle.write(tmp_path, random=True)
    again = torch.load(tmp_path / tiny_bundle.CHECKPOINT, weights_only=True)
    assert all(torch.equal(tensor, again[key]) for key, tensor in checkpoint.items())
    first, second = (load_file(folder / tiny_bundle.VAE) for folder in (base, tmp_path))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert all(tensor.isfinite().all() for tensor in [*checkpoint.values(), *first.values()])


def test_comfyui_knows_the_vae_as_wans(base):
    import comfy.sd

    vae = comfy.sd.VAE(sd=load_file(base / tiny_bundle.VAE))
    assert type(vae.first_stage_model).__module__ == "comfy.ldm.wan.vae"
    pixels = vae.decode(torch.zeros(1, 16, 2, 4, 4))
    assert pixels.shape[-4:] == (5, 32, 32, 3)
    assert pixels.isfinite().all()


def test_trained_one_has_the_same_keys_in_its_own_blocks(base, checkpoint, tmp_path):
    tiny_bundle.write(tmp_path)
    trained = torch.load(tmp_path / tiny_bundle.CHECKPOINT, weights_only=True)

    def kinds(state: dict[str, torch.Tensor]) -> set[str]:
        return {re.sub(r"^blocks\.\d+", "blocks.*", key) for key in state}

    assert kinds(trained) == kinds(checkpoint)
    kept = load_file(WEIGHTS / "ultragen.safetensors")
    assert all(torch.equal(tensor, kept[key]) for key, tensor in trained.items()) and len(trained) == len(kept)
    narrow, wide = (load_file(folder / tiny_bundle.VAE) for folder in (tmp_path, base))
    assert narrow.keys() == wide.keys()
    for name in (tiny_bundle.VAE_WAN22, tiny_bundle.LATENT):  # never trained
        assert (tmp_path / name).read_bytes() == (base / name).read_bytes()


def test_further_models_are_used_once_they_are_kept(base, tmp_path, monkeypatch):
    for file, name in tiny_bundle.KEPT.items():
        assert file in tiny_bundle.GENERATED
        state = {"a": torch.arange(4096.0).reshape(64, 64)}
        save_file(packed(state), tmp_path / name)
    for name in ("ultragen.safetensors", "vae.safetensors"):
        (tmp_path / name).symlink_to(WEIGHTS / name)
    monkeypatch.setattr(tiny_bundle, "WEIGHTS", tmp_path)
    monkeypatch.setattr(tiny_bundle, "GENERATED", {})
    tiny_bundle.write(tmp_path / "base")
    for file in tiny_bundle.KEPT:
        made = load_file(tmp_path / "base" / file)
        assert torch.allclose(made["a"].float(), state["a"], atol=16) and made["a"].dtype == torch.float16


def test_the_trained_ones_can_be_had_alone(tmp_path):
    tiny_bundle.write(tmp_path / "all")
    tiny_bundle.write_trained(tmp_path / "alone")
    alone = {path.relative_to(tmp_path / "alone").as_posix(): path for path in tmp_path.glob("alone/**/*.*")}
    assert alone.keys() == {tiny_bundle.CHECKPOINT, tiny_bundle.VAE}
    assert all(path.read_bytes() == (tmp_path / "all" / name).read_bytes() for name, path in alone.items())
