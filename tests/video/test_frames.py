"""The frame buffer: rounding, order, and nothing left on disk."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from ultragen_core.video.frames import FrameBuffer, quantise

SHAPE = (3, 6, 8)
PLENTY = 1 << 30


def whole(pixels: torch.Tensor) -> tuple[slice, slice, slice]:
    return tuple(slice(0, size) for size in pixels.shape[:3])


def files_held_open(folder) -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [target for link in links if os.path.islink(link) and str(folder) in (target := os.readlink(link))]


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, np.uint16)])
@pytest.mark.parametrize("memory_limit", [0, PLENTY], ids=["disk", "ram"])
def test_levels_are_the_nearest(tmp_path, bits, dtype, memory_limit):
    pixels = torch.rand(*SHAPE, 3, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    pixels.view(-1)[:3] = torch.tensor([0.0, 1.0, 0.5])
    with FrameBuffer(*SHAPE, bits, tmp_path, memory_limit) as buffer:
        assert buffer.on_disk == (memory_limit == 0)
        buffer.write(*whole(pixels), pixels)
        frames = np.stack(list(buffer))
    top = 2**bits - 1
    expected = np.rint(np.clip(pixels.numpy(), 0, 1) * np.float32(top))
    assert frames.dtype == dtype
    assert np.array_equal(frames, expected.astype(dtype))


def test_sixteen_bits_reach_every_level():
    levels = torch.arange(65536)
    assert np.array_equal(quantise(levels / 65535, 16).numpy().view(np.uint16), levels.numpy())


def test_low_precision_pixels_are_rounded_in_float32():
    pixels = torch.linspace(0, 1, 999, dtype=torch.bfloat16)
    assert torch.equal(quantise(pixels, 8), quantise(pixels.float(), 8))


@pytest.mark.parametrize("memory_limit", [0, PLENTY], ids=["disk", "ram"])
def test_pieces_come_in_any_order_and_the_last_writing_counts(tmp_path, memory_limit):
    truth = torch.rand(*SHAPE, 3, generator=torch.Generator().manual_seed(1))
    pieces = [(slice(t, t + 1), slice(y, y + 3), slice(x, x + 4)) for x in (4, 0) for y in (3, 0) for t in (2, 0, 1)]
    with FrameBuffer(*SHAPE, 8, tmp_path, memory_limit) as buffer:
        buffer.write(*pieces[0], torch.zeros_like(truth[pieces[0]]))
        for where in pieces:
            buffer.write(*where, truth[where])
        frames = np.stack(list(buffer))
    assert np.array_equal(frames, quantise(truth, 8).numpy())


def test_the_callers_pixels_are_left_alone(tmp_path):
    pixels = torch.full((*SHAPE, 3), 2.0)
    with FrameBuffer(*SHAPE, 8, tmp_path, PLENTY) as buffer:
        buffer.write(*whole(pixels), pixels)
    assert (pixels == 2).all()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's list of open files")
def test_nothing_stays_on_disk_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="decode failed"), FrameBuffer(*SHAPE, 16, tmp_path, 0):
        assert files_held_open(tmp_path)
        assert os.listdir(tmp_path) == []
        raise RuntimeError("decode failed")
    assert files_held_open(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_a_disk_without_room_is_an_error_at_the_start(tmp_path):
    with pytest.raises(OSError):
        FrameBuffer(1 << 20, 1 << 13, 1 << 13, 16, tmp_path, 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_frames_that_are_not_finite_are_counted_once(tmp_path, dtype):
    pixels = torch.rand(*SHAPE, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    with FrameBuffer(*SHAPE, 8, tmp_path, PLENTY) as buffer:
        buffer.write(*whole(pixels), pixels)
        assert buffer.not_finite == 0
        pixels[0, 0, 0, 0], pixels[2, 1, 1, 1], pixels[2, 5, 7, 2] = float("nan"), float("inf"), -float("inf")
        for _ in range(2):  # tiles are computed again where memory runs out
            buffer.write(*whole(pixels), pixels)
        assert buffer.not_finite == 2
        frames = np.stack(list(buffer))
    assert (frames[0, 0, 0, 0], frames[2, 1, 1, 1], frames[2, 5, 7, 2]) == (0, 255, 0)
