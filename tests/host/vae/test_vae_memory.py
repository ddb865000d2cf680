"""Memory that runs out by another name, RAM that runs out, and devices with a largest tensor."""

from __future__ import annotations

import errno
import functools
from types import SimpleNamespace

import comfy.cli_args
import comfy.ldm.wan.vae
import comfy.model_management as mm
import pytest
import torch

from ultragen_core.host.memory import NotEnoughMemory, is_out_of_memory
from ultragen_core.host.vae import exact, retry, run, tile_size
from ultragen_core.out_of_ram import is_host_out_of_memory
from ultragen_core.vae import memory
from ultragen_core.vae.parse import decoder_layers, encoder_layers

GPU, CPU, MPS = torch.device("cuda"), torch.device("cpu"), torch.device("mps")
GIB = 2**30


def accelerator(text: str) -> RuntimeError:
    return getattr(torch, "AcceleratorError", RuntimeError)(text)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.OutOfMemoryError("XPU out of memory."),
        accelerator("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.63 GB, other allocations: 1 GB)"),
        RuntimeError("HIP out of memory. Tried to allocate 1 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
        RuntimeError("miopenStatusAllocFailed"),
        RuntimeError("Native API failed: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"),
        RuntimeError("Invalid buffer size: 12.00 GB"),
    ],
)
def test_every_device_says_out_of_memory_its_own_way(error):
    assert is_out_of_memory(error) and not is_host_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_ram_is_told_apart(error):
    assert is_host_out_of_memory(error) and not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes"), ValueError("out of memory"), NotEnoughMemory("out of memory"), KeyboardInterrupt()],
)
def test_other_errors_are_not_memory(error):
    assert not is_out_of_memory(error) and not is_host_out_of_memory(error)


def test_no_error_of_ours_starts_comfyuis_inexact_tiles():
    error = retry.ram_ran_out(MemoryError())
    assert not isinstance(error, mm.OOM_EXCEPTION) and "out of memory" not in str(error)


def failing(times: int, error: Exception, tries: list[int]):
    def work(tile: int) -> None:
        tries.append(tile)
        if len(tries) <= times:
            raise error

    return work


@pytest.mark.parametrize(
    "text", ["CUDNN_STATUS_ALLOC_FAILED", "MPS backend out of memory", "CUDA error: out of memory"]
)
def test_tiles_halve_whatever_the_device_calls_it(text):
    tries = []
    retry.tiled_pass(failing(2, accelerator(text), tries), 512, lambda tile: 1, GPU)
    assert tries == [512, 256, 128]


def test_ram_is_no_reason_for_smaller_tiles_on_a_gpu_and_one_on_the_cpu():
    for device, expected in ((GPU, [512]), (CPU, [512, 256])):
        tries = []
        work = failing(1, RuntimeError("DefaultCPUAllocator: can't allocate memory"), tries)
        if device == GPU:
            with pytest.raises(NotEnoughMemory, match=r"computer's memory \(RAM\), not the GPU's"):
                retry.tiled_pass(work, 512, lambda tile: 1, device)
        else:
            retry.tiled_pass(work, 512, lambda tile: 1, device)
        assert tries == expected


def test_whole_frames_are_repeated_only_with_the_features_on_another_device():
    for features_device, expected in ((GPU, [GPU, CPU]), (CPU, [CPU])):
        tries = []
        work = failing(9, accelerator("CUDA error: out of memory"), tries)
        attempts = [functools.partial(work, home) for home in tile_size.TileChoice(64, features_device).homes]
        with pytest.raises(NotEnoughMemory, match="whole frame of 8x8 pixels"):
            retry.whole_frame_pass(attempts, (8, 8), 1, GPU)
        assert tries == expected


def test_images_that_ram_cannot_hold_end_in_an_error():
    vae = SimpleNamespace(output_device=CPU)
    with pytest.raises(NotEnoughMemory, match="UltraGen Save Video"):
        exact.empty_images(vae, (1, 2**20, 2**14, 2**14, 3))


def test_comfyuis_switch_turns_pinned_memory_off(monkeypatch):
    assert exact.may_pin()
    monkeypatch.setattr(comfy.cli_args.args, "disable_pinned_memory", True)
    assert not exact.may_pin()


@pytest.fixture(scope="module")
def wan():
    """Wan 2.1's VAE in its real width, without weights."""
    with torch.device("meta"):
        return comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])


@pytest.fixture
def apple(monkeypatch):
    """A VAE on a simulated GPU of Apple's with much memory."""
    monkeypatch.setattr(mm, "load_models_gpu", lambda *given, **more: None)
    monkeypatch.setattr(tile_size, "free_memory", lambda patcher, device: 2**40)
    return SimpleNamespace(device=MPS, patcher=None, disable_offload=False, vae_dtype=torch.float32)


def test_tiles_stay_below_the_largest_tensor(apple, wan):
    limit = memory.tensor_limit(MPS)
    assert limit == 2**32 and memory.tensor_limit(GPU) == memory.tensor_limit(CPU) == float("inf")
    layers, latent = decoder_layers(wan), (16, 21, 270, 480)
    bounded = tile_size.decode_needs(layers, latent, torch.float32, limit)
    with pytest.raises(memory.TensorTooLarge, match="more than the 4.0 GiB that this device takes"):
        bounded.tile(4096)
    for asked in (4096, None):
        choice = tile_size.choose_tile(apple, asked, 3840, bounded)
        assert bounded.tile(choice.tile) > 0 and choice.tile in (512, 1920, 960)
    assert tile_size.decode_needs(layers, latent, torch.float32).tile(4096) > 4 * GIB, "elsewhere nothing is bounded"


def test_features_above_the_largest_tensor_wait_on_the_host(apple):
    for size, home in ((2**32, MPS), (2**32 + 1, CPU)):
        needs = tile_size.MemoryNeeds(lambda tile: tile, 10, size)
        assert tile_size.choose_tile(apple, None, 1000, needs).features_device == home


def test_whole_frames_above_the_largest_tensor_are_refused(wan):
    limit = memory.tensor_limit(MPS)
    with pytest.raises(NotEnoughMemory, match="--cpu-vae"):
        tile_size.decode_needs(decoder_layers(wan), (16, 21, 1200, 1200), torch.float32, limit)


def test_a_smallest_tile_above_the_largest_tensor_is_refused(apple, wan):
    layers, size = decoder_layers(wan), (16, 21, 32, 32)
    limit = 17 * 2**20  # enough for every weight and for whole frames
    with pytest.raises(memory.TensorTooLarge):
        tile_size.decode_needs(layers, size, torch.float32, limit).tile(64)
    for asked in (64, None):
        with pytest.raises(NotEnoughMemory, match="more than the 0.0 GiB that this device takes.*--cpu-vae"):
            tile_size.choose_tile(apple, asked, 256, tile_size.decode_needs(layers, size, torch.float32, limit))


def test_an_encode_of_large_tiles_is_bounded_too(apple, wan, monkeypatch):
    chosen = []
    monkeypatch.setattr(run, "feature_buffer", lambda *given: None)
    monkeypatch.setattr(run, "tiled_pass", lambda work, tile, *rest: chosen.append(tile))
    monkeypatch.setattr(run, "whole_frame_pass", lambda *given: torch.empty(1, 32, 1, 1, 1))
    x = torch.empty(1, 3, 5, 4096, 4096, device="meta")
    run.encode_video(apple, encoder_layers(wan), x, 4096, print)
    assert chosen[0] < 4096


def test_images_too_large_for_the_device_are_made_on_the_host(monkeypatch):
    monkeypatch.setitem(memory.LARGEST_TENSOR, "meta", 1000)
    vae = SimpleNamespace(output_device=torch.device("meta"))
    assert exact.empty_images(vae, (1, 1, 9, 9, 3)).device.type == "meta"
    assert exact.empty_images(vae, (1, 1, 90, 9, 3)).device.type == "cpu"
