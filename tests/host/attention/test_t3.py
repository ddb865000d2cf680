"""T3-Video's rule on ComfyUI's own models: both latent formats, on, off, cloned, and how its files are known."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import pytest
import torch
from helpers.comfy_run import attn_state, sample, velocity
from helpers.support import relative_error, seeded
from safetensors.torch import load_file, save_file

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.host.attention.load import load_extras_file, load_model
from ultragen_core.host.attention.patch import Settings, apply, runtime_of
from ultragen_core.weights.files import WeightsError

SHAPE = (1, 16, 3, 16, 24)
LATENT, CONTEXT = seeded(*SHAPE), seeded(1, 16, 4096, seed=1)
FLOAT32 = {"dtype": torch.float32}


def base_weights(path):
    return {k: v for k, v in load_file(path).items() if not any(n in k for n in ("_lora_", "alpha_", "sample_conv"))}


def wan22(path):
    """The same weights with the latent of Wan 2.2 5B: 48 channels."""
    state = base_weights(path)
    state["patch_embedding.weight"] = seeded(256, 48, 1, 2, 2, seed=7) / 14
    state["head.head.weight"], state["head.head.bias"] = seeded(192, 256, seed=8) / 16, torch.zeros(192)
    return state


@pytest.fixture(params=[16, 48])
def files(request, tiny_path, tmp_path):
    """A T3-Video file by its published name, for one of the two models, and a latent for it."""
    state, name = {
        16: (base_weights(tiny_path), "T3-Video-Wan2.1-T2V-1.3B.safetensors"),
        48: (wan22(tiny_path), "T3-Video-Wan2.2-T2V-5B.safetensors"),
    }[request.param]
    save_file(state, tmp_path / name)
    return tmp_path / name, seeded(1, request.param, 3, 16, 24)


def test_known_by_name_patched_and_off_again(files):
    path, latent = files
    patched, dense = load_model(path, "auto", FLOAT32), load_model(path, "dense", FLOAT32)
    before, state = velocity(dense, latent, CONTEXT, 0.5), attn_state(dense)
    result = velocity(patched, latent, CONTEXT, 0.5)
    assert result.shape == latent.shape and torch.isfinite(result).all()
    assert relative_error(result, before) > 1e-3
    assert torch.equal(velocity(apply(dense, Settings(rule="t3")), latent, CONTEXT, 0.5), result)
    assert torch.equal(velocity(dense, latent, CONTEXT, 0.5), before) and attn_state(dense) == state
    comfy.model_management.unload_all_models()
    assert torch.equal(velocity(patched.clone(), latent, CONTEXT, 0.5), result)
    bypassed = apply(patched, Settings(end_percent=0.2))
    assert torch.equal(velocity(bypassed, latent, CONTEXT, 0.99), velocity(patched, latent, CONTEXT, 0.99))
    assert torch.equal(velocity(bypassed, latent, CONTEXT, 0.1), velocity(dense, latent, CONTEXT, 0.1))


def test_applying_again_keeps_the_rule(files):
    path, latent = files
    patched = load_model(path, "auto", FLOAT32)
    again = apply(patched, Settings())
    assert torch.equal(velocity(again, latent, CONTEXT, 0.5), velocity(patched, latent, CONTEXT, 0.5))
    some = apply(patched, Settings(global_=GlobalConfig(dense_blocks=frozenset({1}))))
    assert relative_error(velocity(some, latent, CONTEXT, 0.5), velocity(patched, latent, CONTEXT, 0.5)) > 1e-4


def test_every_block_follows_the_rule(tiny, caplog):
    caplog.set_level("INFO")
    sample(apply(tiny, Settings(rule="t3")), SHAPE, CONTEXT, steps=1)
    assert (
        "grid 3x8x12, rule t3 in 4 of 4 blocks (0-3), windows (t x h x w) 3x1x1 once, 1x1x2, 1x1x2, 1x1x1 once, 1x1x1"
        " once in turn\n"
    ) in caplog.text
    assert (
        "The weights were not trained for 192x128, 9 frames (experimental); they were for 3840x2176, 81 frames."
    ) in caplog.text


def test_one_window_of_everything_agrees_with_dense_attention(tiny, dense):
    """A frame so small that every window but single frames is the whole."""
    model = apply(tiny, Settings(rule="t3", global_=GlobalConfig(dense_blocks=frozenset({0}))))
    x = seeded(1, 16, 3, 8, 8)
    assert relative_error(velocity(model, x, CONTEXT, 0.5), velocity(dense, x, CONTEXT, 0.5)) < 1e-5


def test_other_attention_than_trained_for_warns(files, tiny_path, caplog):
    path, _ = files
    for rule in ("dense", "ultragen"):
        caplog.clear()
        load_model(path, rule, FLOAT32)
        assert f"was trained for the t3 rule; the {rule} rule will give worse results" in caplog.text
    caplog.clear()
    load_model(tiny_path, "t3", FLOAT32)
    assert "was trained for the ultragen rule; the t3 rule will" in caplog.text


def test_the_rule_is_never_guessed(tiny_path, tmp_path):
    save_file(base_weights(tiny_path), tmp_path / "renamed.safetensors")
    with pytest.raises(WeightsError, match="Set attention_rule to t3 for a renamed T3-Video checkpoint"):
        load_model(tmp_path / "renamed.safetensors", "auto", FLOAT32)
    save_file(base_weights(tiny_path), tmp_path / "wan2.1_test3-video.safetensors")
    with pytest.raises(WeightsError, match="or a file named T3-Video"):
        load_model(tmp_path / "wan2.1_test3-video.safetensors", "auto", FLOAT32)
    chosen = velocity(load_model(tmp_path / "renamed.safetensors", "t3", FLOAT32), LATENT, CONTEXT, 0.5)
    save_file(base_weights(tiny_path), tmp_path / "t3_video_fp16.safetensors")
    assert torch.equal(
        velocity(load_model(tmp_path / "t3_video_fp16.safetensors", "auto", FLOAT32), LATENT, CONTEXT, 0.5), chosen
    )


def test_a_size_that_cannot_be_cut_is_refused_before_sampling(tiny):
    model = apply(tiny, Settings(rule="t3"))
    evaluated = []
    model.set_model_unet_function_wrapper(lambda *a: evaluated.append(1))
    with pytest.raises(ValueError, match="close to the published ones. The nearest size that does"):
        sample(model, (1, 16, 21, 2 * 67, 2 * 113), CONTEXT, steps=1)
    assert not evaluated


def test_extras_with_t3_are_refused(tiny, tiny_path):
    with pytest.raises(ValueError, match="The t3 rule uses no extras"):
        apply(tiny, Settings(rule="t3"), load_extras_file(tiny_path))


def test_image_to_video_keeps_its_first_frame(tiny_path, tmp_path):
    """Wan 2.2 5B, as ComfyUI does it: the first latent frame is given, its tokens are at t = 0 (experimental)."""
    save_file(wan22(tiny_path), tmp_path / "T3-Video-Wan2.2-T2V-5B.safetensors")
    model = load_model(tmp_path / "T3-Video-Wan2.2-T2V-5B.safetensors", "auto", FLOAT32)
    latent, mask = seeded(1, 48, 3, 16, 24), torch.ones(1, 1, 3, 16, 24)
    mask[:, :, 0] = 0
    conditions = [[CONTEXT, {}]]
    noise = comfy.sample.prepare_noise(latent, 0)
    video = comfy.sample.sample(
        model, noise, 2, 1.0, "euler", "simple", conditions, conditions, latent, noise_mask=mask, disable_pbar=True
    )
    assert torch.isfinite(video).all() and torch.allclose(video[:, :, 0], latent[:, :, 0], atol=1e-5)
    assert relative_error(video[:, :, 1:], latent[:, :, 1:]) > 0.1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"local": LocalConfig(antialias=True)}, "fixed windows and no gates, but the local config asks for others"),
        ({"global_": GlobalConfig(lora_strength=0.5)}, "no global branch, but the global config changes one"),
    ],
)
def test_settings_that_the_rule_cannot_use_are_refused(tiny, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply(tiny, Settings(rule="t3", **settings))
    kept = GlobalConfig(dense_blocks=frozenset({1}))
    assert runtime_of(apply(tiny, Settings(rule="t3", global_=kept))).rule.blocks == [0, 2, 3]
