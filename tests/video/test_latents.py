"""Kept latents: exact, whole, and readable by ComfyUI's own node."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ultragen_core.files import finished_file
from ultragen_core.video.latents import load_latent, newest_first, save_latent

SAMPLES = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_a_latent_comes_back_exactly_with_its_metadata(tmp_path):
    path = tmp_path / "a.latent"
    save_latent(path, SAMPLES.transpose(3, 4), {"prompt": "{}"})
    assert torch.equal(load_latent(path), SAMPLES.transpose(3, 4))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"prompt": "{}"}
    assert os.listdir(tmp_path) == ["a.latent"]


def test_comfyuis_own_node_reads_it(tmp_path, monkeypatch):
    import folder_paths

    import nodes

    save_latent(tmp_path / "a.latent", SAMPLES, {})
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
        ({"weight": torch.zeros(2)}, "holds a tensor named latent_tensor"),
        ({"latent_tensor": torch.zeros(4)}, "4 or 5 axes"),
        ({"latent_tensor": torch.full((1, 16, 1, 2, 2), torch.nan)}, "NaN"),
    ],
)
def test_files_that_hold_no_latent_are_said(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.latent")
    with pytest.raises(ValueError, match=message):
        load_latent(tmp_path / "a.latent")


def test_a_half_written_file_is_said(tmp_path):
    path = tmp_path / "a.latent"
    save_latent(path, SAMPLES, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="a.latent is not a complete latent file"):
        load_latent(path)


def test_the_newest_comes_first(tmp_path):
    paths = [tmp_path / name for name in ("old.latent", "new.latent", "middle.latent")]
    for path, time in zip(paths, (1000, 3000, 2000), strict=True):
        path.touch()
        os.utime(path, (time, time))
    assert newest_first([*paths, tmp_path / "gone.latent"]) == [paths[1], paths[2], paths[0]]


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), finished_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with finished_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.name == "a.txt.part"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]
