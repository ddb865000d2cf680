"""The sampling nodes: published noise levels and supported sizes."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import comfy.model_sampling
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


def test_a_latent_larger_than_memory_is_refused_with_both_sizes(pack, monkeypatch):
    empty = node(pack, "UltraGenEmptyLatent").execute
    with pytest.raises(
        ValueError, match=r"A latent of 16384x16384, 4097 frames, batch of 64, takes .* GiB .* are free"
    ):
        empty("custom", 16384, 16384, 4097, 64)
    monkeypatch.setattr("comfy.model_management.get_free_memory", lambda _: 4 * 16 * 8 * 8 - 1)
    with pytest.raises(ValueError, match="Choose a smaller size, fewer frames or a smaller batch"):
        empty("custom", 64, 64, 1, 1)
    monkeypatch.setattr("comfy.model_management.get_free_memory", lambda _: 4 * 16 * 8 * 8)
    assert empty("custom", 64, 64, 1, 1).result[0]["samples"].shape == (1, 16, 1, 8, 8)


def test_model_sampling_is_for_flow_models(pack, tiny, caplog):
    sampling = node(pack, "UltraGenModelSampling").execute
    other = tiny.clone()
    other.add_object_patch("model_sampling", comfy.model_sampling.EPS())
    with pytest.raises(ValueError, match="A flow shift needs a flow model such as Wan, got WanModel. Connect"):
        sampling(other, 5.0, 30)
    with pytest.raises(ValueError, match="such as Wan, got str"):
        sampling("a model", 5.0, 30)
    assert not caplog.records
    flow = SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1))
    monkey = SimpleNamespace(model=flow, get_model_object=lambda _: comfy.model_sampling.CONST())
    with pytest.raises(AttributeError):  # this one stops after the warning
        sampling(monkey, 5.0, 30)
    assert "are meant for Wan models, but this one is Linear" in caplog.text


@pytest.mark.parametrize("shape", [(16,), (1, 16, 3), (1, 16, 0, 8, 8), (1, 4, 1, 8, 8)])
def test_latents_of_other_shapes_are_refused(pack, tiny, shape):
    latent = {"samples": torch.zeros(shape)}
    for name, rest in (("UltraGenModelSampling", (5.0, 4, latent)), ("UltraGenPlan", (latent,))):
        with pytest.raises(ValueError, match="A latent has 4 or 5 axes|A Wan latent has 16 or 48 channels"):
            node(pack, name).execute(tiny, *rest)


def test_other_things_than_models_and_configs_are_refused(pack, tiny):
    apply = partial(node(pack, "UltraGenApply").execute, attention_rule="auto", extras="none")
    apply = partial(apply, start_percent=0, end_percent=1, bounded_memory=True)
    with pytest.raises(ValueError, match="UltraGen patches Wan models, got dict"):
        apply({})
    with pytest.raises(ValueError, match="Connect UltraGen Local Config, got a value of type dict"):
        apply(tiny, local_config={})
    with pytest.raises(ValueError, match="Connect UltraGen Global Config, got a value of type LocalConfig"):
        apply(
            tiny,
            global_config=node(pack, "UltraGenLocalConfig")
            .execute(0, 0, "paper", "auto", False, True, 0, 0, 1.0, "trained", 0.5, 1.0)
            .result[0],
        )
