"""Real files, read back with PyAV as a BT.709 player reads them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from ultragen_core.video.audio import AudioClip
from ultragen_core.video.codecs import CODECS, Codec, check_frame_size
from ultragen_core.video.encoder import VideoWriter

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
def test_audio_is_written_and_ends_with_the_video(tmp_path, codec, channels):
    seconds = np.arange(48000 * 3) / 48000
    tone = np.broadcast_to(np.sin(2 * np.pi * 440 * seconds), (channels, len(seconds))) * 0.5
    path = written(tmp_path, codec, np.full((15, 64, 64, 3), 90, np.uint8), audio=AudioClip(tone, 48000))
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
@pytest.mark.parametrize("size", [(16, 16), (16384, 16)], ids=str)
def test_the_extreme_sizes_allowed_can_be_written(tmp_path, codec, size):
    check_frame_size(codec, *size)
    width, height = size
    assert len(read_back(written(tmp_path, codec, np.zeros((2, height, width, 3), np.uint8)))) == 2


ENCODE = """
import json, sys, av, numpy as np

noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
for _ in range(2):
    with av.open(sys.argv[1], "w") as container:
        stream = container.add_stream("libx265", rate=15, width=48, height=64, pix_fmt="yuv420p")
        stream.options = json.loads(sys.argv[2])
        for _ in range(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
"""


def test_narrow_h265_leaves_the_process_alive(tmp_path):
    """x265 writes past its buffers below 50 pixels of width. glibc's own check ends such a process at once."""
    checker = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")
    checks = {"LD_PRELOAD": str(checker), "MALLOC_CHECK_": "3"} if checker.exists() else {}
    options = json.dumps(H265.options(30, 7, (48, 64)))
    command = [sys.executable, "-c", ENCODE, str(tmp_path / "narrow.mp4"), options]
    subprocess.run(command, env={**os.environ, **checks}, check=True)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_audio_and_frames_are_interleaved(tmp_path, codec):
    """A minute at one frame a second: encoders hold back far more seconds than a container waits for (10)."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 8000 * 60))
    path = tmp_path / f"minute.{codec.extension}"
    with VideoWriter(path, codec, (64, 64), Fraction(1), 40, 60, AudioClip(noise, 8000)) as writer:
        for index in range(60):
            writer.write(np.full((64, 64, 3), index, np.uint8))
        writer.finish(lambda: None)
    with av.open(str(path)) as container:
        packets = sorted((p.pos, p.dts * p.time_base, p.stream.type) for p in container.demux() if p.dts is not None)
    reached = {"audio": 0, "video": 0}
    for _, time, kind in packets:
        reached[kind] = time
        assert abs(reached["audio"] - reached["video"]) <= 3
    assert min(reached.values()) >= 56


def test_shorter_audio_is_padded_with_silence(tmp_path):
    clip = AudioClip(np.full((2, 16000), 0.5), 48000)
    path = written(tmp_path, FFV1, np.full((15, 32, 32, 3), 90, np.uint8), audio=clip)
    with av.open(str(path)) as container:
        heard = np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in container.decode(audio=0)])
    assert len(heard) == 48000
    assert (np.abs(heard[:16000] - 16384) <= 1).all() and not heard[16000:].any()


@pytest.mark.parametrize(
    ("codec", "rate", "used"), [(H264, 192000, 48000), (H264, 37000, 44100), (FFV1, 192000, 192000)]
)
def test_a_rate_that_the_codec_lacks_is_resampled(tmp_path, codec, rate, used):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)[None]
    path = written(tmp_path, codec, np.full((15, 32, 32, 3), 90, np.uint8), audio=AudioClip(tone, rate))
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == used
        planar = av.AudioResampler(format="fltp")
        pieces = [piece for frame in container.decode(audio=0) for piece in planar.resample(frame)]
    heard = np.concatenate([piece.to_ndarray() for piece in pieces], axis=1)[0]
    assert abs(len(heard) - used) <= 2048
    middle = heard[used // 10 : used * 9 // 10]
    assert np.abs(np.fft.rfft(middle)).argmax() * used / len(middle) == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


def test_audio_beyond_full_scale_is_clipped(tmp_path):
    loud = AudioClip(np.full((1, 48000), 1e30), 48000)
    path = written(tmp_path, H264, np.full((3, 32, 32, 3), 90, np.uint8), audio=loud)
    with av.open(str(path)) as container:
        assert max(np.abs(frame.to_ndarray()).max() for frame in container.decode(audio=0)) < 1.5


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("count", [0, 4])
def test_fewer_frames_than_announced_are_an_error(tmp_path, codec, count):
    message = f"A file must get the 9 frames announced, got {count}"
    with pytest.raises(ValueError, match=message), VideoWriter(tmp_path / "a", codec, (64, 64), FPS, 12, 9) as writer:
        for _ in range(count):
            writer.write(np.full((64, 64, 3), 7, np.uint8))
        writer.finish(lambda: None)


@pytest.mark.parametrize(
    "frame", [np.zeros((64, 64, 3)), np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64), np.uint8)]
)
def test_frames_of_another_format_are_refused(tmp_path, frame):
    message = r"A frame must be uint8 or uint16 of shape \(height, width, 3\), got"
    with pytest.raises(ValueError, match=message), VideoWriter(tmp_path / "a", H264, (64, 64), FPS, 12, 1) as writer:
        writer.write(frame)


def test_what_ffmpeg_refuses_is_an_oserror_that_names_the_file(tmp_path):
    with pytest.raises(OSError, match="could not write big.mp4"):
        VideoWriter(tmp_path / "big.mp4", H264, (20000, 64), FPS, 12, 1).write(np.zeros((64, 64, 3), np.uint8))


def test_leaving_without_finish_closes_the_file(tmp_path):
    path = tmp_path / "video.mkv"
    with VideoWriter(path, FFV1, (64, 64), FPS, 12, 2) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "ffv1"
    del writer  # the garbage collector closes it, too


@pytest.mark.parametrize("codec", [H264, FFV1], ids=["mp4", "mkv"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_closed_file_is_not_written_to(tmp_path, codec, finished):
    """PyAV would crash the process."""
    frame = np.zeros((64, 64, 3), np.uint8)
    with VideoWriter(tmp_path / "video", codec, (64, 64), FPS, 12, 1) as writer:
        writer.write(frame)
        if finished:
            writer.finish(lambda: None)
    with pytest.raises(ValueError, match="Could not write video: the file is closed"):
        writer.write(frame)
    with pytest.raises(ValueError, match="the file is closed"):
        writer.finish(lambda: None)
