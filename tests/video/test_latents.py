"""Latent files: exact, complete, and readable by ComfyUI's own node."""

from __future__ import annotations

import os

import pytest
import torch
from helpers.support import seeded
from safetensors import safe_open
from safetensors.torch import save_file

from ultragen_core.video.latents import count_not_finite, load_latent, newest_first, save_latent

SAMPLES = seeded(1, 16, 3, 4, 6)


def test_a_latent_comes_back_exactly_with_its_metadata(tmp_path):
    path = tmp_path / "a.latent"
    assert save_latent([path], SAMPLES.transpose(3, 4), {"prompt": "{}"}) == path
    assert torch.equal(load_latent(path), SAMPLES.transpose(3, 4))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"prompt": "{}"}
    assert os.listdir(tmp_path) == ["a.latent"]


@pytest.mark.parametrize(("characters", "metadata"), [(40_000_000, True), (100_000_000, False)])
def test_no_metadata_is_too_long_for_the_latent_to_be_read(tmp_path, caplog, characters, metadata):
    """Pictures in the prompt, as API clients send them, make it that long; the safetensors library reads 100 MB."""
    path = save_latent([tmp_path / "a.latent"], SAMPLES, {"prompt": "A" * characters})
    assert torch.equal(load_latent(path), SAMPLES)
    with safe_open(path, "pt") as file:
        assert bool(file.metadata()) == metadata
    assert ("without prompt and workflow" in caplog.text) == (not metadata)


def test_comfyuis_own_node_reads_it(tmp_path, monkeypatch):
    import folder_paths

    import nodes

    save_latent([tmp_path / "a.latent"], SAMPLES, {})
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    assert torch.equal(nodes.LoadLatent().load("a.latent")[0]["samples"], SAMPLES)


def test_comfyuis_own_files_are_read(tmp_path, monkeypatch):
    import folder_paths

    import nodes

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    nodes.SaveLatent().save({"samples": SAMPLES}, "latents/b")
    (path,) = (tmp_path / "latents").glob("b*.latent")
    assert torch.equal(load_latent(path), SAMPLES)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2)}, "must hold a tensor named latent_tensor"),
        ({"latent_tensor": torch.zeros(4)}, "4 or 5 non-empty axes"),
        ({"latent_tensor": torch.zeros(1, 16, 0, 2, 2)}, "non-empty axes"),
    ],
)
def test_files_that_hold_no_latent_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.latent")
    with pytest.raises(ValueError, match=message):
        load_latent(tmp_path / "a.latent")


def test_a_partial_file_is_refused(tmp_path):
    path = tmp_path / "a.latent"
    save_latent([path], SAMPLES, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="a.latent is not a complete latent file"):
        load_latent(path)


def test_the_newest_comes_first(tmp_path):
    paths = [tmp_path / name for name in ("old.latent", "new.latent", "middle.latent")]
    for path, time in zip(paths, (1000, 3000, 2000), strict=True):
        path.touch()
        os.utime(path, (time, time))
    assert newest_first([*paths, tmp_path / "gone.latent"]) == [paths[1], paths[2], paths[0]]


def test_a_latent_never_replaces_another_file(tmp_path):
    (tmp_path / "a.latent").write_text("mine")
    assert save_latent([tmp_path / "a.latent", tmp_path / "b.latent"], SAMPLES, {}).name == "b.latent"
    assert (tmp_path / "a.latent").read_text() == "mine"


def test_values_that_are_not_finite_come_back_as_they_were(tmp_path):
    broken = SAMPLES.clone()
    broken[0, 0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    save_latent([tmp_path / "a.latent"], broken, {})
    loaded = load_latent(tmp_path / "a.latent")
    assert torch.equal(loaded.nan_to_num(7, 8, 9), broken.nan_to_num(7, 8, 9))
    assert count_not_finite(loaded) == 3 and count_not_finite(SAMPLES) == 0


def test_a_file_that_is_cut_while_its_latent_is_used(tmp_path):
    """With a mapped file this would be a bus error, which kills the process."""
    save_latent([tmp_path / "a.latent"], SAMPLES, {})
    loaded = load_latent(tmp_path / "a.latent")
    os.truncate(tmp_path / "a.latent", 0)
    with open("/proc/self/maps") as maps:  # where this fails, the comparison ends all tests
        assert str(tmp_path) not in maps.read()
    assert torch.equal(loaded, SAMPLES)
