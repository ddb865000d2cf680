"""Unusual VAEs, latents, images and copies: each ends in ComfyUI's result or in an error that says what to do."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import threading
import weakref

import comfy.model_management as mm
import comfy.sd
import pytest
import torch
from helpers.support import seeded
from helpers.vae_models import toy_vae

from ultragen_core.host.memory import NotEnoughMemory
from ultragen_core.host.vae import exact, patch, run, support
from ultragen_core.host.vae.patch import exact_vae
from ultragen_core.host.vae.shapes import decoded_shape
from ultragen_core.host.vae.support import fallback_reason
from ultragen_core.vae.feature_buffer import FeatureBuffer


def small_vae():
    return toy_vae(width=4)


@pytest.fixture(scope="module")
def vae():
    return small_vae()


@pytest.fixture(scope="module")
def samples():
    return seeded(1, 16, 2, 9, 10)


@pytest.fixture(scope="module")
def reference(vae, samples):
    return vae.decode(samples)


def close(ours: torch.Tensor, reference: torch.Tensor) -> bool:
    return ours.shape == reference.shape and (ours - reference).abs().max() < 5e-6


def convolution(old: torch.nn.Module, channels_in: int, channels_out: int) -> torch.nn.Module:
    made = type(old)(channels_in, channels_out, 3, padding=1).requires_grad_(False)
    made.weight.copy_(seeded(*made.weight.shape, seed=1) * 0.1)
    made.bias.zero_()
    return made


def with_channels(decoded: int, encoded: int):
    vae = small_vae()
    model, vae.output_channels = vae.first_stage_model, encoded
    model.decoder.head[2] = convolution(model.decoder.head[2], 4, decoded)
    model.encoder.conv1 = convolution(model.encoder.conv1, encoded, 4)
    return vae


def test_a_decoder_of_12_channels_is_left_to_comfyui(samples):
    other = with_channels(12, 3)
    assert "makes 12 channels, its encoder takes 3" in fallback_reason(other)
    assert torch.equal(exact_vae(other).decode(samples), other.decode(samples))
    assert exact.decode(other, samples).shape[-1] == 12
    with pytest.raises(ValueError, match="3 or 4 channels is needed, but this one makes 12"):
        decoded_shape(other, samples.shape)


def test_alpha_is_decoded_and_left_out_of_videos(samples, caplog):
    other, pieces = with_channels(4, 4), []
    reference = other.decode(samples)
    assert reference.shape[-1] == 4 and close(exact.decode(other, samples, 64), reference)
    with caplog.at_level(logging.WARNING):
        exact.stream_decode(other, samples, lambda region, pixels: pieces.append((region, pixels)), 96)
    assert all(close(pixels, reference[region][..., :3]) for region, pixels in pieces)
    assert [record.message for record in caplog.records if "alpha" in record.message]


@pytest.mark.parametrize("error", [KeyError("upsamples"), RuntimeError("shapes\nof a layer"), AttributeError("x")])
def test_whatever_the_trial_raises_is_a_fallback_reason(monkeypatch, error):
    def broken(*given):
        raise error

    monkeypatch.setattr(support, "decode_error", broken)
    reason = fallback_reason(small_vae())
    assert type(error).__name__ in reason and "\n" not in reason


@pytest.mark.parametrize(
    "error,raised",
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), NotEnoughMemory),
        (RuntimeError("MPS backend out of memory"), NotEnoughMemory),
        (MemoryError(), NotEnoughMemory),
        (mm.InterruptProcessingException(), mm.InterruptProcessingException),
    ],
)
def test_a_trial_without_memory_or_interrupted_is_repeated(monkeypatch, error, raised):
    other = small_vae()

    def stopped(*given):
        raise error

    with monkeypatch.context() as scope, pytest.raises(raised):
        scope.setattr(support, "decode_error", stopped)
        fallback_reason(other)
    assert fallback_reason(other) == ""


def test_damaged_weights_end_in_an_error(samples):
    other = small_vae()
    other.first_stage_model.decoder.conv1.weight.data.fill_(float("nan"))
    reason = fallback_reason(other)
    assert "decode gives NaN" in reason and "float32" in reason and "differs" not in reason
    assert exact.decode(other, samples).isnan().all()


def test_a_module_that_only_looks_like_wans(samples):
    class WanVAE(torch.nn.Module):
        pass

    other = small_vae()
    other.first_stage_model = WanVAE()
    assert "AttributeError" in fallback_reason(other)
    assert decoded_shape(other, samples.shape) == (1, 5, 72, 80)


@pytest.mark.parametrize("model", ["AutoencoderKL", "TAESD"])
def test_image_vaes_are_left_to_comfyui(model):
    class Scaled(torch.nn.Module):
        def decode(self, z):
            return torch.nn.functional.interpolate(z[:, :3], scale_factor=8)

    Scaled.__name__ = model
    other, pieces = small_vae(), []
    other.first_stage_model, other.latent_dim, other.latent_channels, other.upscale_ratio = Scaled(), 2, 4, 8
    other.memory_used_decode = lambda shape, dtype: 1
    z = torch.randn(2, 4, 3, 5)
    assert model in fallback_reason(other)
    assert torch.equal(exact_vae(other).decode(z), other.decode(z))
    exact.stream_decode(other, z, lambda region, pixels: pieces.append((region, pixels)))
    assert [region.batch for region, _ in pieces] == [0, 1] and pieces[0][1].shape == (1, 24, 40, 3)


@pytest.mark.parametrize("what", [None, "vae.safetensors", object()])
def test_what_is_no_vae_ends_in_an_error(what):
    for use in (fallback_reason, exact_vae, lambda vae: exact.decode(vae, torch.zeros(1, 16, 1, 8, 8))):
        with pytest.raises(ValueError, match=f"A VAE is needed here, got {type(what).__name__}"):
            use(what)


def test_a_pack_that_decodes_by_itself_is_left_to_it(samples):
    class Doubled(comfy.sd.VAE):
        def decode(self, samples_in, vae_options={}):  # noqa: B006, as ComfyUI has it
            return super().decode(samples_in) * 2

    other = small_vae()
    other.__class__ = Doubled
    assert "Another node pack has replaced its decode." in fallback_reason(other)
    assert torch.equal(exact_vae(other).decode(samples_in=samples), other.decode(samples))
    patched = small_vae()
    patched.encode_tiled = lambda pixels, **more: "theirs"
    assert exact_vae(patched).encode_tiled(None) == "theirs"


def test_a_subclass_that_changes_something_else_stays_itself(samples, reference):
    class Named(comfy.sd.VAE):
        label = "mine"

    other = small_vae()
    other.__class__ = Named
    tiled = exact_vae(exact_vae(other, 64), 96)
    assert isinstance(tiled, Named) and tiled.label == "mine" and tiled.exact_tile == 96
    assert close(tiled.decode(samples), reference)


def test_methods_take_comfyuis_parameters_by_name_and_by_position(monkeypatch, vae):
    monkeypatch.setattr(patch, "decode", lambda vae, samples, tile, gpus: (samples, tile))
    monkeypatch.setattr(patch, "encode", lambda vae, pixels, tile: (pixels, tile))
    tiled = exact_vae(vae, 64)
    for name in support.METHODS:
        _, *parameters = inspect.signature(getattr(comfy.sd.VAE, name)).parameters
        assert getattr(tiled, name)(**dict.fromkeys(parameters, 7)) == (7, 64)
        assert getattr(tiled, name)(*[7 for _ in parameters]) == (7, 64)


def test_a_parameter_of_a_newer_comfyui_is_honoured_by_its_own_method(monkeypatch, vae):
    """ComfyUI's next encode takes `not_video`, for a batch of images instead of a video."""

    def newer(self, pixel_samples, not_video=None):
        return "theirs", not_video

    monkeypatch.setattr(comfy.sd.VAE, "encode", newer)
    monkeypatch.setattr(patch, "encode", lambda vae, pixels, tile: "ours")
    tiled = exact_vae(vae, 64)
    assert tiled.encode(None) == tiled.encode(None, not_video=None) == "ours"
    assert tiled.encode(None, True) == tiled.encode(None, not_video=True) == ("theirs", True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'typo'"):
        tiled.encode(None, typo=1)


def test_a_copy_decodes_with_what_it_holds(monkeypatch, vae, samples, reference):
    copied = copy.copy(exact_vae(vae, 64))
    other = small_vae()
    other.first_stage_model.decoder.conv1.bias.data.add_(1.0)
    copied.first_stage_model, copied.patcher = other.first_stage_model, other.patcher
    expected = other.decode(samples)
    assert not close(expected, reference) and close(copied.decode(samples), expected)
    seen, copied.device = [], torch.device("meta")
    monkeypatch.setattr(exact, "decode_video", lambda vae, *given: seen.append(vae.device))
    copied.decode(samples)
    assert seen == [torch.device("meta")]
    unknown = copy.copy(exact_vae(vae, 64))
    unknown.first_stage_model = torch.nn.Identity()
    unknown.first_stage_model.decode = lambda z: torch.ones(1, 3, 1, 2, 2)
    monkeypatch.undo()
    assert unknown.decode(samples).shape == (1, 1, 2, 2, 3), "ComfyUI's own decode"


def test_support_is_examined_for_each_dtype(monkeypatch):
    other, tried = small_vae(), []
    monkeypatch.setattr(support, "examine", lambda vae: tried.append(vae.vae_dtype) or support.VAESupport())
    for dtype in (torch.float32, torch.float16, torch.float32):
        other.vae_dtype = dtype
        fallback_reason(other)
    assert tried == [torch.float32, torch.float16]


@pytest.mark.parametrize(
    "shape,sentence",
    [
        ((16, 2, 3), "takes latents of 5 dimensions"),
        ((1, 16, 4, 4), "takes latents of 5 dimensions"),
        ((1, 1, 16, 2, 4, 4), "takes latents of 5 dimensions"),
        ((1, 48, 2, 4, 4), "the latent has 48 channels, but the VAE takes 16"),
        ((0, 16, 2, 4, 4), "latent is empty"),
        ((1, 16, 0, 4, 4), "latent is empty"),
        ((1, 16, 1, 0, 4), "latent is empty"),
    ],
)
def test_wrong_latents_end_in_an_error(vae, shape, sentence):
    z = torch.zeros(shape)
    for use in (exact.decode, exact_vae(vae).__class__.decode, lambda v, z: exact.stream_decode(v, z, print)):
        with pytest.raises(ValueError, match=sentence):
            use(exact_vae(vae), z)


@pytest.mark.parametrize(
    "shape,sentence",
    [
        ((32, 32, 3), "must be .frames, height, width, channels"),
        ((0, 32, 32, 3), "must be .frames, height, width, channels"),
        ((1, 7, 32, 3), "sides of at least 8"),
        ((1, 1, 1, 32, 32, 3), "must be .frames, height, width, channels"),
        ((1, 32, 32, 0), "must be .frames, height, width, channels"),
    ],
)
def test_wrong_images_end_in_an_error(vae, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        exact.encode(vae, torch.zeros(shape))


def test_of_video_and_sound_the_video_is_decoded(vae, samples, reference):
    class Nested:  # as newer ComfyUI's NestedTensor
        is_nested = True

        def unbind(self):
            return [samples, torch.zeros(1, 8, 4)]

    assert close(exact.decode(vae, Nested()), reference)


def test_odd_latents_and_images_give_what_comfyui_gives(vae, samples, reference):
    odd = samples.transpose(3, 4).contiguous().transpose(3, 4).requires_grad_()
    made = exact.decode(vae, odd)
    assert close(made, reference) and not made.requires_grad
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        assert close(exact.decode(vae, samples[:, :, :1].to(dtype)), vae.decode(samples[:, :, :1].to(dtype)))
    assert exact.decode(vae, torch.full_like(samples[:, :, :1], float("nan"))).isnan().all()
    images = torch.rand(2, 40, 48, 4)
    alone = copy.copy(vae)
    alone.not_video = True
    for each in (vae, alone):
        assert close(exact.encode(each, images), each.encode(images[..., :3]))


@pytest.mark.parametrize("tile", [-5, 0, 63, 96.5, True, "96"])
def test_a_tile_from_a_link_is_checked_before_any_work(vae, samples, tile):
    for use in (exact.decode, exact.encode, lambda v, x, t: exact_vae(v, t)):
        with pytest.raises(ValueError, match="must be at least 64 pixels, got"):
            use(None, samples, tile)


def test_an_interrupted_decode_leaves_nothing(monkeypatch, vae, samples, reference):
    buffers, inner, alive = weakref.WeakSet(), FeatureBuffer.write, []
    monkeypatch.setattr(FeatureBuffer, "write", lambda self, *given: (buffers.add(self), inner(self, *given)))

    def write(region, pixels):
        alive.append(len(buffers))
        mm.interrupt_current_processing(True)

    with pytest.raises(mm.InterruptProcessingException):
        exact.stream_decode(vae, samples, write, 64)
    gc.collect()
    assert alive and not buffers
    assert close(exact.decode(vae, samples, 64), reference)


def test_two_threads_with_one_vae(vae, samples):
    both = [samples, samples.flip(-1)]
    expected, made = [vae.decode(z) for z in both], [None, None]

    def work(index: int) -> None:
        made[index] = exact.decode(vae, both[index], 64)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(close(*pair) for pair in zip(made, expected, strict=True))


@pytest.fixture
def features_elsewhere(monkeypatch):
    """Feature buffers start on another device than the host's: the CPU by its other name."""
    choose, other = run.choose_tile, torch.device("cpu", 0)
    monkeypatch.setattr(run, "choose_tile", lambda *given: choose(*given)._replace(features_device=other))
    return other


def test_a_repeated_phase_is_counted_once(monkeypatch, vae, features_elsewhere):
    whole, calls, reports = run.encode.whole_frames, [], []

    def scarce(*given):
        latents = whole(*given)
        calls.append(1)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return latents

    layers = support.vae_support(vae).encoder
    monkeypatch.setattr(run.encode, "whole_frames", scarce)
    run.encode_video(vae, layers, torch.rand(1, 3, 5, 40, 80), 64, lambda *report: reports.append(report))
    assert len(calls) == 2 and len({total for _, total in reports}) == 1
    assert max(reports) == reports[-1] and reports[-1][0] == reports[-1][1]


def test_an_encode_whose_features_find_no_memory_keeps_them_on_the_host(monkeypatch, vae, features_elsewhere):
    pixels = torch.rand(5, 40, 80, 3, generator=torch.Generator().manual_seed(3))
    allocated = FeatureBuffer.__init__

    def scarce(self, *given):
        if features_elsewhere in given:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        allocated(self, *given)

    fallback_reason(vae)
    monkeypatch.setattr(FeatureBuffer, "__init__", scarce)
    assert close(exact.encode(vae, pixels, 64), vae.encode(pixels))


def test_an_encode_whose_last_phase_finds_no_memory_moves_the_features(monkeypatch, vae, features_elsewhere):
    pixels = torch.rand(5, 40, 48, 3, generator=torch.Generator().manual_seed(3))
    whole, devices = run.encode.whole_frames, []

    def scarce(tail, features, *given):
        devices.append(features.device)
        if len(devices) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(tail, features, *given)

    fallback_reason(vae)
    monkeypatch.setattr(run.encode, "whole_frames", scarce)
    assert close(exact.encode(vae, pixels), vae.encode(pixels))
    assert devices == [features_elsewhere, torch.device("cpu")]


def scarce_ram(self, *given, **more):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


@pytest.mark.parametrize("use", ["decode", "encode"])
def test_features_that_find_no_memory_are_named_with_the_way_out(monkeypatch, vae, samples, use):
    fallback_reason(vae)
    monkeypatch.setattr(FeatureBuffer, "__init__", scarce_ram)
    given = samples if use == "decode" else torch.rand(5, 72, 80, 3)
    message = "MiB for the features of 2 latent frames of 80x72 pixels, which could not.*smaller or shorter video"
    with pytest.raises(NotEnoughMemory, match=message):
        getattr(exact, use)(vae, given)


def test_frames_that_are_complete_move_with_the_features(monkeypatch, vae, samples, reference, features_elsewhere):
    whole, asked = run.decode.whole_frames, []

    def scarce(head, z, indices, context, features, send):
        indices = list(indices)
        asked.append((features.device, indices))
        if len(asked) == 1:
            whole(head, z, indices[:1], context, features, send)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        whole(head, z, indices, context, features, send)

    fallback_reason(vae)
    monkeypatch.setattr(run.decode, "whole_frames", scarce)
    assert close(exact.decode(vae, samples, 64), reference)
    assert asked == [(features_elsewhere, [0, 1]), (torch.device("cpu"), [1])]
