"""Real files, read back with PyAV the way a player of BT.709 does."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from ultragen_core.video.codecs import CODECS, Codec, check_frame_size
from ultragen_core.video.encoder import Sound, VideoWriter

H264, H265, H265_10, FFV1 = CODECS.values()
FPS = Fraction(15)


def written(folder: Path, codec: Codec, frames: np.ndarray, crf: int = 12, **more) -> Path:
    path = folder / f"video.{codec.extension}"
    height, width = frames.shape[1:3]
    with VideoWriter(path, codec, (width, height), FPS, crf, len(frames), **more) as writer:
        for frame in frames:
            writer.write(frame)
        writer.finish(lambda: None)
    return path


def read_back(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def patches(colours: list[tuple[int, int, int]], frames: int = 3) -> np.ndarray:
    row = np.repeat(np.array(colours, np.uint8), 64, axis=0)
    return np.broadcast_to(row, (frames, 64, *row.shape)).copy()


@pytest.mark.parametrize("codec", [H264, H265], ids=lambda codec: codec.encoder)
def test_colours_come_back_in_a_bt709_reader(tmp_path, codec):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)]
    frame = read_back(written(tmp_path, codec, patches(colours)))[1]
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()
    for index, colour in enumerate(colours):
        centre = rgb[24:40, 64 * index + 24 : 64 * index + 40].astype(int)
        assert np.abs(centre - colour).max() <= 3, colour


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_colour_is_tagged(tmp_path, codec):
    grey = np.full((2, 64, 64, 3), 128, np.uint8)
    with av.open(str(written(tmp_path, codec, grey))) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == codec.pixel_format
        # BT.709's primaries and transfer; matrix and range: BT.709 limited, or RGB full.
        assert (context.color_primaries, context.color_trc) == (1, 1)
        assert (context.colorspace, context.color_range) == ((0, 2) if codec is FFV1 else (1, 1))


def test_lossless_is_bit_exact(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)
    frames = read_back(written(tmp_path, FFV1, noise))
    assert np.array_equal(np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), noise)


def test_lossless_takes_odd_sizes(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (2, 33, 51, 3), dtype=np.uint8)
    frames = read_back(written(tmp_path, FFV1, noise))
    assert np.array_equal(frames[1].to_ndarray(format="rgb24"), noise[1])


def luma(frame: av.VideoFrame) -> np.ndarray:
    """Levels of a yuv420p10le frame's luma; PyAV 14 has no to_ndarray for it."""
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint16).reshape(frame.height, plane.line_size // 2)[:, : frame.width]


def test_ten_bits_are_ten_bits(tmp_path):
    ramp = np.linspace(0, 65535, 4096).round().astype(np.uint16)
    frames = np.broadcast_to(ramp[None, None, :, None], (3, 64, 4096, 3)).copy()
    levels = luma(read_back(written(tmp_path, H265_10, frames))[1])
    assert len(np.unique(levels)) > 256
    assert np.abs(levels[32].astype(float) - (64 + 876 * (ramp / 65535))).max() <= 5


def test_frames_keep_their_order_number_and_time(tmp_path):
    frames = np.stack([np.full((32, 32, 3), 16 * index, np.uint8) for index in range(13)])
    back = read_back(written(tmp_path, H264, frames))
    assert [round(frame.time * 15) for frame in back] == list(range(13))
    values = [int(frame.to_ndarray(format="gray")[16, 16]) for frame in back]
    assert values == sorted(values) and len(set(values)) == 13


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_short_videos_are_whole(tmp_path, codec, count):
    back = read_back(written(tmp_path, codec, np.full((count, 32, 32, 3), 77, np.uint8)))
    assert [round(frame.time * 15) for frame in back] == list(range(count))


def test_frames_of_another_size_are_scaled(tmp_path):
    path = tmp_path / "small.mp4"
    with VideoWriter(path, H264, (32, 16), FPS, 20, 1) as writer:
        writer.write(np.full((64, 128, 3), 200, np.uint8))
        writer.finish(lambda: None)
    assert (read_back(path)[0].width, read_back(path)[0].height) == (32, 16)


@pytest.mark.parametrize("codec", [H264, FFV1], ids=lambda codec: codec.container)
def test_metadata_is_in_the_file(tmp_path, codec):
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    path = written(tmp_path, codec, grey, metadata={"prompt": '{"1": "ä"}', "workflow": "{}"})
    with av.open(str(path)) as container:
        # Matroska writes its tags in capitals.
        found = {key.lower(): value for key, value in container.metadata.items()}
    assert found["prompt"] == '{"1": "ä"}' and found["workflow"] == "{}"


@pytest.mark.parametrize("codec", [H264, FFV1], ids=lambda codec: codec.container)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_goes_along_and_ends_with_the_video(tmp_path, codec, channels):
    seconds = np.arange(48000 * 3) / 48000
    tone = np.broadcast_to(np.sin(2 * np.pi * 440 * seconds), (channels, len(seconds))) * 0.5
    path = written(tmp_path, codec, np.full((15, 64, 64, 3), 90, np.uint8), sound=Sound(tone, 48000))
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == codec.audio_encoder
        planar = av.AudioResampler(format="fltp")
        pieces = [piece for frame in container.decode(audio=0) for piece in planar.resample(frame)]
    heard = np.concatenate([piece.to_ndarray() for piece in pieces], axis=1)
    assert heard.shape[0] == channels
    assert abs(heard.shape[1] - 48000) <= 2048
    peak = np.abs(np.fft.rfft(heard[0, 4800:43200].astype(float))).argmax() * 48000 / 38400
    assert peak == pytest.approx(440, abs=2)


def test_a_full_disk_is_an_error_with_its_number():
    noise = np.random.default_rng(0).integers(0, 256, (60, 128, 128, 3), dtype=np.uint8)
    with pytest.raises(OSError) as error, VideoWriter(Path("/dev/full"), FFV1, (128, 128), FPS, 12, 60) as writer:
        for frame in noise:
            writer.write(frame)
        writer.finish(lambda: None)
    assert error.value.errno == errno.ENOSPC


def test_the_frames_held_back_can_be_interrupted(tmp_path):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop), VideoWriter(tmp_path / "a.mp4", H264, (64, 64), FPS, 12, 30) as writer:
        for _ in range(30):
            writer.write(np.full((64, 64, 3), 7, np.uint8))
        writer.finish(stop)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_the_smallest_size_allowed_can_be_written(tmp_path, codec):
    check_frame_size(codec, 16, 16)
    assert len(read_back(written(tmp_path, codec, np.zeros((2, 16, 16, 3), np.uint8)))) == 2
