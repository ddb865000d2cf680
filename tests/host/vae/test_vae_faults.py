"""VAEs, latents, images and copies as they should not be: each ends in core's result or in a sentence."""

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
from helpers.vae_models import toy_vae

from ultragen_core.host.memory import NotEnoughMemory
from ultragen_core.host.vae import patch as host
from ultragen_core.host.vae import run as vae_run
from ultragen_core.host.vae import support as vae_known
from ultragen_core.vae.shelf import Shelf


def small_vae():
    return toy_vae(width=4)


@pytest.fixture(scope="module")
def vae():
    return small_vae()


@pytest.fixture(scope="module")
def samples():
    return torch.randn(1, 16, 2, 9, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def core(vae, samples):
    return vae.decode(samples)


def close(ours: torch.Tensor, core: torch.Tensor) -> bool:
    return ours.shape == core.shape and (ours - core).abs().max() < 5e-6


def convolution(old: torch.nn.Module, channels_in: int, channels_out: int) -> torch.nn.Module:
    made = type(old)(channels_in, channels_out, 3, padding=1).requires_grad_(False)
    made.weight.copy_(torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    made.bias.zero_()
    return made


def with_channels(decoded: int, encoded: int):
    vae = small_vae()
    model, vae.output_channels = vae.first_stage_model, encoded
    model.decoder.head[2] = convolution(model.decoder.head[2], 4, decoded)
    model.encoder.conv1 = convolution(model.encoder.conv1, encoded, 4)
    return vae


def test_a_decoder_of_12_channels_is_left_to_core(samples):
    other = with_channels(12, 3)
    assert "makes 12 channels, its encoder takes 3" in host.refusal(other)
    assert torch.equal(host.tiled(other).decode(samples), other.decode(samples))
    assert host.decode(other, samples).shape[-1] == 12
    with pytest.raises(ValueError, match="3 or 4 channels is needed, this one makes 12"):
        host.decoded_shape(other, samples.shape)


def test_alpha_is_decoded_and_left_out_of_videos(samples, caplog):
    other, pieces = with_channels(4, 4), []
    core = other.decode(samples)
    assert core.shape[-1] == 4 and close(host.decode(other, samples, 64), core)
    with caplog.at_level(logging.WARNING):
        host.stream_decode(other, samples, lambda region, pixels: pieces.append((region, pixels)), 96)
    assert all(close(pixels, core[region][..., :3]) for region, pixels in pieces)
    assert [record.message for record in caplog.records if "alpha" in record.message]


@pytest.mark.parametrize("error", [KeyError("upsamples"), RuntimeError("shapes\nof a layer"), AttributeError("x")])
def test_whatever_the_canary_raises_is_a_refusal(monkeypatch, error):
    def broken(*given):
        raise error

    monkeypatch.setattr(vae_known, "_decode_error", broken)
    refusal = host.refusal(small_vae())
    assert type(error).__name__ in refusal and "\n" not in refusal


@pytest.mark.parametrize(
    "error,raised",
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), NotEnoughMemory),
        (RuntimeError("MPS backend out of memory"), NotEnoughMemory),
        (MemoryError(), NotEnoughMemory),
        (mm.InterruptProcessingException(), mm.InterruptProcessingException),
    ],
)
def test_a_canary_without_memory_or_interrupted_is_tried_again(monkeypatch, error, raised):
    other = small_vae()

    def stopped(*given):
        raise error

    with monkeypatch.context() as patch, pytest.raises(raised):
        patch.setattr(vae_known, "_decode_error", stopped)
        host.refusal(other)
    assert host.refusal(other) == ""


def test_damaged_weights_are_said(samples):
    other = small_vae()
    other.first_stage_model.decoder.conv1.weight.data.fill_(float("nan"))
    refusal = host.refusal(other)
    assert "decode makes NaN" in refusal and "float32" in refusal and "differs" not in refusal
    assert host.decode(other, samples).isnan().all()


def test_a_module_that_only_looks_like_wans(samples):
    class WanVAE(torch.nn.Module):
        pass

    other = small_vae()
    other.first_stage_model = WanVAE()
    assert "AttributeError" in host.refusal(other)
    assert host.decoded_shape(other, samples.shape) == (1, 5, 72, 80)


@pytest.mark.parametrize("model", ["AutoencoderKL", "TAESD"])
def test_image_vaes_are_left_to_core(model):
    class Scaled(torch.nn.Module):
        def decode(self, z):
            return torch.nn.functional.interpolate(z[:, :3], scale_factor=8)

    Scaled.__name__ = model
    other, pieces = small_vae(), []
    other.first_stage_model, other.latent_dim, other.latent_channels, other.upscale_ratio = Scaled(), 2, 4, 8
    other.memory_used_decode = lambda shape, dtype: 1
    z = torch.randn(2, 4, 3, 5)
    assert model in host.refusal(other)
    assert torch.equal(host.tiled(other).decode(z), other.decode(z))
    host.stream_decode(other, z, lambda region, pixels: pieces.append((region, pixels)))
    assert [region.batch for region, _ in pieces] == [0, 1] and pieces[0][1].shape == (1, 24, 40, 3)


@pytest.mark.parametrize("what", [None, "vae.safetensors", object()])
def test_what_is_no_vae_is_said(what):
    for use in (host.refusal, host.tiled, lambda vae: host.decode(vae, torch.zeros(1, 16, 1, 8, 8))):
        with pytest.raises(ValueError, match=f"A VAE is needed here, got {type(what).__name__}"):
            use(what)


def test_a_pack_that_decodes_by_itself_is_left_to_it(samples):
    class Doubled(comfy.sd.VAE):
        def decode(self, samples_in, vae_options={}):  # noqa: B006, as core has it
            return super().decode(samples_in) * 2

    other = small_vae()
    other.__class__ = Doubled
    assert "decode is another node pack's" in host.refusal(other)
    assert torch.equal(host.tiled(other).decode(samples_in=samples), other.decode(samples))
    patched = small_vae()
    patched.encode_tiled = lambda pixels, **more: "theirs"
    assert host.tiled(patched).encode_tiled(None) == "theirs"


def test_a_subclass_that_changes_something_else_stays_itself(samples, core):
    class Named(comfy.sd.VAE):
        label = "mine"

    other = small_vae()
    other.__class__ = Named
    exact = host.tiled(host.tiled(other, 64), 96)
    assert isinstance(exact, Named) and exact.label == "mine" and exact.exact_tile == 96
    assert close(exact.decode(samples), core)


def test_methods_take_what_cores_take_by_name(monkeypatch, vae):
    monkeypatch.setattr(host, "decode", lambda vae, samples, tile: (samples, tile))
    monkeypatch.setattr(host, "encode", lambda vae, pixels, tile: (pixels, tile))
    exact = host.tiled(vae, 64)
    for name in vae_known.METHODS:
        _, *parameters = inspect.signature(getattr(comfy.sd.VAE, name)).parameters
        assert getattr(exact, name)(**dict.fromkeys(parameters, 7)) == (7, 64)
        assert getattr(exact, name)(*[7 for _ in parameters]) == (7, 64)


def test_a_copy_decodes_with_what_it_holds(monkeypatch, vae, samples, core):
    copied = copy.copy(host.tiled(vae, 64))
    other = small_vae()
    other.first_stage_model.decoder.conv1.bias.data.add_(1.0)
    copied.first_stage_model, copied.patcher = other.first_stage_model, other.patcher
    expected = other.decode(samples)
    assert not close(expected, core) and close(copied.decode(samples), expected)
    seen, copied.device = [], torch.device("meta")
    monkeypatch.setattr(host, "decode_video", lambda vae, *given: seen.append(vae.device))
    copied.decode(samples)
    assert seen == [torch.device("meta")]
    unknown = copy.copy(host.tiled(vae, 64))
    unknown.first_stage_model = torch.nn.Identity()
    unknown.first_stage_model.decode = lambda z: torch.ones(1, 3, 1, 2, 2)
    monkeypatch.undo()
    assert unknown.decode(samples).shape == (1, 1, 2, 2, 3), "core's own decode"


def test_what_is_known_holds_for_one_dtype(monkeypatch):
    other, tried = small_vae(), []
    monkeypatch.setattr(vae_known, "_examine", lambda vae: tried.append(vae.vae_dtype) or vae_known.Known())
    for dtype in (torch.float32, torch.float16, torch.float32):
        other.vae_dtype = dtype
        host.refusal(other)
    assert tried == [torch.float32, torch.float16]


@pytest.mark.parametrize(
    "shape,sentence",
    [
        ((16, 2, 3), "takes latents of 5 dimensions"),
        ((1, 16, 4, 4), "takes latents of 5 dimensions"),
        ((1, 1, 16, 2, 4, 4), "takes latents of 5 dimensions"),
        ((1, 48, 2, 4, 4), "the latent has 48 channels, the VAE takes 16"),
        ((0, 16, 2, 4, 4), "latent is empty"),
        ((1, 16, 0, 4, 4), "latent is empty"),
        ((1, 16, 1, 0, 4), "latent is empty"),
    ],
)
def test_wrong_latents_are_said(vae, shape, sentence):
    z = torch.zeros(shape)
    for use in (host.decode, host.tiled(vae).__class__.decode, lambda v, z: host.stream_decode(v, z, print)):
        with pytest.raises(ValueError, match=sentence):
            use(host.tiled(vae), z)


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
def test_wrong_images_are_said(vae, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        host.encode(vae, torch.zeros(shape))


def test_of_video_and_sound_the_video_is_decoded(vae, samples, core):
    class Nested:  # as newer ComfyUI's NestedTensor
        is_nested = True

        def unbind(self):
            return [samples, torch.zeros(1, 8, 4)]

    assert close(host.decode(vae, Nested()), core)


def test_odd_latents_and_images_give_what_core_gives(vae, samples, core):
    odd = samples.transpose(3, 4).contiguous().transpose(3, 4).requires_grad_()
    made = host.decode(vae, odd)
    assert close(made, core) and not made.requires_grad
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        assert close(host.decode(vae, samples[:, :, :1].to(dtype)), vae.decode(samples[:, :, :1].to(dtype)))
    assert host.decode(vae, torch.full_like(samples[:, :, :1], float("nan"))).isnan().all()
    images = torch.rand(2, 40, 48, 4)
    alone = copy.copy(vae)
    alone.not_video = True
    for each in (vae, alone):
        assert close(host.encode(each, images), each.encode(images[..., :3]))


@pytest.mark.parametrize("tile", [-5, 0, 63, 96.5, True, "96"])
def test_a_tile_from_a_link_is_checked_before_any_work(vae, samples, tile):
    for use in (host.decode, host.encode, lambda v, x, t: host.tiled(v, t)):
        with pytest.raises(ValueError, match="must be at least 64 pixels, got"):
            use(None, samples, tile)


def test_an_interrupted_decode_leaves_nothing(monkeypatch, vae, samples, core):
    shelves, put, alive = weakref.WeakSet(), Shelf.put, []
    monkeypatch.setattr(Shelf, "put", lambda self, *given: (shelves.add(self), put(self, *given)))

    def write(region, pixels):
        alive.append(len(shelves))
        mm.interrupt_current_processing(True)

    with pytest.raises(mm.InterruptProcessingException):
        host.stream_decode(vae, samples, write, 64)
    gc.collect()
    assert alive and not shelves
    assert close(host.decode(vae, samples, 64), core)


def test_two_threads_with_one_vae(vae, samples):
    both = [samples, samples.flip(-1)]
    expected, made = [vae.decode(z) for z in both], [None, None]

    def work(index: int) -> None:
        made[index] = host.decode(vae, both[index], 64)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(close(*pair) for pair in zip(made, expected, strict=True))


def test_an_encode_whose_last_phase_finds_no_memory_moves_the_features(monkeypatch, vae):
    pixels = torch.rand(5, 40, 48, 3, generator=torch.Generator().manual_seed(3))
    whole, homes = vae_run.encode.whole_frames, []

    def scarce(tail, shelf, *given):
        homes.append(shelf.home)
        if len(homes) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(tail, shelf, *given)

    host.refusal(vae)
    monkeypatch.setattr(vae_run.encode, "whole_frames", scarce)
    assert close(host.encode(vae, pixels), vae.encode(pixels)) and len(homes) == 2
