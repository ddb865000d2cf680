"""The sampling nodes: published noise levels, possible sizes, prompt lists."""

from __future__ import annotations

import json

import pytest
import torch

from ultragen_core.sampling import flow_sigmas, shift_for_size
from ultragen_core.sizes import PRESETS, VideoSize, latent_shape, round_up


def node(pack, name):
    return next(n for n in pack.nodes.NODES if n.__name__ == name)


@pytest.mark.parametrize("steps", [1, 4, 30, 50])
def test_sigmas_are_the_published_ones(steps):
    expected = [5 * s / (1 + 4 * s) for s in (1 - i / steps for i in range(steps + 1))]
    sigmas = flow_sigmas(steps, 5.0)
    assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0
    assert torch.allclose(sigmas.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_model_sampling_node_sets_shift_and_timesteps(pack, tiny):
    model, sigmas = node(pack, "UltraGenModelSampling").execute(tiny, 5.0, 30).result
    sampling = model.get_model_object("model_sampling")
    assert sampling.shift == 5.0 and tiny.get_model_object("model_sampling") is not sampling
    assert torch.equal(sampling.timestep(sigmas), 1000 * sigmas)
    assert abs(sampling.percent_to_sigma(0.5) - 5 * 0.5 / 3) < 1e-6


def test_shift_grows_with_the_root_of_the_pixels(pack, tiny):
    assert shift_for_size(1920, 1088) == 5.0
    assert abs(shift_for_size(3840, 2176) - 10.0) < 1e-9
    latent = {"samples": torch.zeros(1, 16, 1, 272, 480)}
    model, _ = node(pack, "UltraGenModelSampling").execute(tiny, 3.0, 4, latent).result
    assert abs(model.get_model_object("model_sampling").shift - 6.0) < 1e-6


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [((1920, 1080, 80), (1920, 1088, 81)), ((16, 16, 1), (16, 16, 1)), ((17, 1, 2), (32, 16, 5))],
)
def test_sizes_round_up(wanted, expected):
    assert round_up(VideoSize(*wanted)) == VideoSize(*expected)


def test_presets_are_possible_sizes():
    assert all(round_up(size) == size for size in PRESETS.values())
    assert latent_shape(PRESETS["1080P x 81 (1920x1088)"], 1) == (1, 16, 21, 136, 240)


def test_empty_latent_says_what_it_rounded(pack):
    output = node(pack, "UltraGenEmptyLatent").execute("custom", 1920, 1080, 80, 2)
    assert output.result[0]["samples"].shape == (2, 16, 21, 136, 240)
    assert "1920x1088, 81 frames (rounded up from 1920x1080, 80 frames)" in json.dumps(output.ui.as_dict())


def test_empty_latent_of_another_vae(pack):
    class Wan22:
        latent_channels = 48

        def spacial_compression_encode(self):
            return 16

        def temporal_compression_decode(self):
            return 4

    def shape(*widgets):
        return node(pack, "UltraGenEmptyLatent").execute(*widgets, 1, Wan22()).result[0]["samples"].shape

    assert shape("custom", 1280, 720, 121) == (1, 48, 31, 46, 80)
    assert shape("4K x 81 (3840x2176)", 64, 64, 1) == (1, 48, 21, 136, 240)  # what T3-Video's 5B was trained on


def test_resume_knows_model_files_by_their_name(pack, tmp_path, monkeypatch):
    import folder_paths

    (tmp_path / "style.safetensors").touch()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    model_files = node(pack, "UltraGenResume").model_files
    assert model_files("style.safetensors") == [tmp_path / "style.safetensors"]
    for other in ("other.safetensors", "style", "a prompt.", str(tmp_path / "style.safetensors"), ""):
        assert model_files(other) == []
