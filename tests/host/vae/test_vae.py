"""The exact tiles under ComfyUI: its VAE object, its nodes, its memory running out, its interruption."""

from __future__ import annotations

import comfy.model_management as mm
import pytest
import torch
from helpers.support import seeded
from helpers.vae_models import toy_vae

import nodes
from ultragen_core.host.memory import NotEnoughMemory
from ultragen_core.host.vae import exact, run, support, tile_size
from ultragen_core.host.vae.patch import exact_vae
from ultragen_core.host.vae.shapes import decoded_shape
from ultragen_core.host.vae.support import fallback_reason
from ultragen_core.vae.cached_conv import CachedConv


@pytest.fixture(scope="module")
def vae():
    return toy_vae()


@pytest.fixture(scope="module")
def samples():
    return seeded(1, 16, 3, 9, 22)


@pytest.fixture(scope="module")
def reference(vae, samples):
    return vae.decode(samples)


def close(ours: torch.Tensor, reference: torch.Tensor, bound: float = 2e-6) -> bool:
    return ours.shape == reference.shape and (ours - reference).abs().max() < bound * reference.abs().max()


def out_of_memory_above(monkeypatch, pixels: int, error=torch.cuda.OutOfMemoryError) -> list[int]:
    """A convolution's buffer of more than `pixels` fails; on "meta", where memory is counted, it does not."""
    input_buffer, failed = CachedConv.input_buffer, []

    def scarce(self, frames):
        if self.context.device.type != "meta" and self.size[0] * self.size[1] > pixels:
            failed.append(self.size[0] * self.size[1])
            raise error("CUDA out of memory (a test)")
        return input_buffer(self, frames)

    monkeypatch.setattr(CachedConv, "input_buffer", scarce)
    return failed


def test_decode_and_shape(vae, samples, reference):
    assert decoded_shape(vae, samples.shape) == tuple(reference.shape[:-1])
    for tile in (None, 64, 96):
        assert close(exact.decode(vae, samples, tile), reference)


def test_a_batch_and_single_images(vae):
    z = seeded(2, 16, 1, 9, 10, seed=1)
    assert close(exact.decode(vae, z, 64), vae.decode(z))


def test_the_stream_covers_everything_once_and_reports(vae, samples, reference):
    seen, reports = torch.zeros(reference.shape[:-1]), []

    def write(region, pixels):
        assert pixels.shape[:3] == seen[region].shape and 0 <= pixels.min() and pixels.max() <= 1
        seen[region] += 1

    exact.stream_decode(vae, samples, write, 64, lambda done, total: reports.append((done, total)))
    assert (seen == 1).all()
    assert reports[-1][0] == reports[-1][1] and [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert len({total for _, total in reports}) == 1, "the bar never moves back"


def test_comfyuis_nodes_decode_exactly(vae, samples, reference):
    tiled = exact_vae(vae, 64)
    assert tiled.patcher is vae.patcher and tiled.first_stage_model is vae.first_stage_model
    assert close(nodes.VAEDecode().decode(tiled, {"samples": samples})[0], reference[0])
    assert close(nodes.VAEDecodeTiled().decode(tiled, {"samples": samples}, 64, 16)[0], reference[0])
    assert torch.equal(vae.decode(samples), reference), "the original VAE is untouched"
    assert close(exact_vae(tiled, 96).decode(samples), reference), "tiling a tiled VAE changes its tile"


def test_comfyuis_nodes_encode_exactly(vae):
    pixels = torch.rand(11, 75, 150, 3, generator=torch.Generator().manual_seed(2))
    reference, tiled = vae.encode(pixels), exact_vae(vae, 64)
    for encode in (nodes.VAEEncode().encode, lambda v, x: nodes.VAEEncodeTiled().encode(v, x, 64, 16)):
        assert close(encode(tiled, pixels)[0]["samples"], reference, 5e-6)


@pytest.mark.parametrize("node", ["VAEDecode", "VAEDecodeTiled"])
def test_out_of_memory_inside_a_tile_stays_exact(monkeypatch, vae, samples, reference, node):
    tiled, frames_done = exact_vae(vae, 160), []
    whole = run.decode.whole_frames
    monkeypatch.setattr(run.decode, "whole_frames", lambda *given: (frames_done.append(1), whole(*given)))
    failed = out_of_memory_above(monkeypatch, 6500)
    made = {
        "VAEDecode": lambda: nodes.VAEDecode().decode(tiled, {"samples": samples}),
        "VAEDecodeTiled": lambda: nodes.VAEDecodeTiled().decode(tiled, {"samples": samples}, 64, 16),
    }[node]()[0]
    assert failed and len(frames_done) == 1, "only the tiles are repeated"
    assert close(made, reference[0])


def test_too_little_memory_for_the_smallest_tile_is_an_error(monkeypatch, vae, samples):
    fallback_reason(vae)
    out_of_memory_above(monkeypatch, 50 * 50)
    with pytest.raises(NotEnoughMemory, match="smallest tile of 64 pixels") as raised:
        nodes.VAEDecode().decode(exact_vae(vae, 128), {"samples": samples})
    assert not isinstance(raised.value, mm.OOM_EXCEPTION)
    assert not hasattr(mm, "is_oom") or not mm.is_oom(raised.value)


def test_too_little_memory_for_a_frame_is_an_error(monkeypatch, vae, samples):
    fallback_reason(vae)
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(NotEnoughMemory, match="whole frame of 176x72 pixels"):
        exact.decode(vae, samples)


def test_interruption(vae, samples):
    pieces = []

    def write(region, pixels):
        pieces.append(region)
        mm.interrupt_current_processing(True)

    with pytest.raises(mm.InterruptProcessingException):
        exact.stream_decode(vae, samples, write, 64)
    assert len(pieces) == 1


def test_memory_is_asked_for_as_needed(monkeypatch, vae, samples):
    asked = []
    load = mm.load_models_gpu
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, memory_required=0, **more: asked.append(memory_required))
    exact.decode(vae, samples, 64)
    monkeypatch.setattr(mm, "load_models_gpu", load)
    assert 0 < asked[-1] < 2**30


def test_auto_takes_the_largest_tile_that_fits(monkeypatch, vae):
    needs = {size: size * size for size in tile_size.TILES}
    monkeypatch.setattr(tile_size, "free_memory", lambda patcher, device: 400 * 400)
    choice = tile_size.choose_tile(vae, None, 2000, tile_size.MemoryNeeds(needs.get, 10, 10))
    assert choice.tile == 384
    assert tile_size.tile_candidates(300)[0] == 320 and tile_size.tile_candidates(9000)[0] == 512


def test_a_tile_that_is_too_small_is_refused(vae, samples):
    with pytest.raises(ValueError, match="at least 64 pixels, got 32"):
        exact.stream_decode(vae, samples, lambda *piece: None, 32)


def test_an_unsupported_vae_is_left_to_comfyui(samples):
    class Renamed(torch.nn.SiLU):
        pass

    other = toy_vae()
    other.first_stage_model.decoder.head[1] = Renamed()
    assert "got RMS_norm, Renamed, CausalConv3d" in fallback_reason(other)
    assert exact_vae(other, 64).decode.__func__ is type(other).decode
    assert torch.equal(exact.decode(other, samples), other.decode(samples))


def test_a_trial_that_disagrees_leaves_the_vae_to_comfyui(monkeypatch, samples, reference):
    other = toy_vae()
    monkeypatch.setattr(support, "decode_error", lambda *given: 0.3)
    assert "differs from ComfyUI's by 3.0e-01" in fallback_reason(other)
    pieces = []
    exact.stream_decode(other, samples, lambda region, pixels: pieces.append((region, pixels)), 64)
    assert len(pieces) == 1 and torch.equal(pieces[0][1], reference[0])


def test_the_trial_sees_a_changed_layer(monkeypatch):
    other = toy_vae()
    forward = type(other.first_stage_model.decoder.middle[0]).forward
    monkeypatch.setattr(
        type(other.first_stage_model.decoder.middle[0]), "forward", lambda self, *a, **k: forward(self, *a, **k) * 1.1
    )
    assert "differs" in fallback_reason(other)
