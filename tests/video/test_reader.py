"""Frames of files: the colours written, the part requested, one at a time."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange

from ultragen_core.video.codecs import CODECS
from ultragen_core.video.encoder import VideoWriter
from ultragen_core.video.reader import read_frames

COUNT = 6


def blocks(bits: int = 8) -> np.ndarray:
    """Frames of large plain blocks, black and white among them, that change from frame to frame."""
    levels = np.random.default_rng(0).integers(0, 256, (COUNT, 2, 3, 3))
    levels[:, 0, 0], levels[:, 1, 2] = 0, 255
    return levels.repeat(32, axis=1).repeat(32, axis=2).astype(np.uint8 if bits == 8 else np.uint16) * (
        bits == 8 or 257
    )


def written(folder, name: str):
    codec = CODECS[name]
    path = folder / f"video.{codec.extension}"
    with VideoWriter(path, codec, (96, 64), Fraction(10), 1, COUNT) as writer:
        for frame in blocks(codec.bits):
            writer.write(frame)
        writer.finish(lambda: None)
    return path


@pytest.mark.parametrize("name", CODECS)
def test_a_file_gives_back_what_was_written(tmp_path, name):
    frames = list(read_frames(str(written(tmp_path, name))))
    assert len(frames) == COUNT and all(frame.dtype == torch.float32 for frame in frames)
    for frame, original in zip(frames, blocks(), strict=True):
        error = (frame - torch.from_numpy(original) / 255).abs()
        if CODECS[name].lossless:
            assert error.max() < 1e-6
        else:
            middles = error.unfold(0, 32, 32).unfold(1, 32, 32)[..., 8:24, 8:24]
            assert middles.max() < 3.5 / 255  # BT.601 taken for BT.709 would be off by up to 36


def test_full_range_is_read_as_such(tmp_path):
    bt709, full = {"src_colorspace": 1, "dst_colorspace": 1}, ColorRange.JPEG
    with av.open(str(tmp_path / "full.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, full
        for index, block in enumerate(blocks()):
            frame = av.VideoFrame.from_ndarray(block, format="rgb24")
            frame = frame.reformat(format="yuv420p", **bt709, src_color_range=ColorRange.MPEG, dst_color_range=full)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for frame, original in zip(read_frames(str(tmp_path / "full.mkv")), blocks(), strict=True):
        error = (frame - torch.from_numpy(original) / 255).abs()
        assert error.unfold(0, 32, 32).unfold(1, 32, 32)[..., 8:24, 8:24].max() < 3.5 / 255


def test_a_part_of_a_file_in_memory(tmp_path):
    source = BytesIO(written(tmp_path, "FFV1 lossless RGB").read_bytes())
    frames = list(read_frames(source, start=0.2, duration=0.3))
    np.testing.assert_array_equal(torch.stack(frames).mul(255).round().byte().numpy(), blocks()[2:5])


def test_frames_that_were_read_take_no_memory(tmp_path):
    path = str(written(tmp_path, "H.264 8-bit"))
    next(read_frames(path))
    tracemalloc.start()
    try:
        for frame in read_frames(path):
            assert frame.shape == (64, 96, 3)
        assert tracemalloc.get_traced_memory()[1] < 4 * frame.numel() * frame.element_size()
    finally:
        tracemalloc.stop()


def test_a_turned_file_is_turned_back(tmp_path):
    path = written(tmp_path, "H.264 8-bit")
    upright = list(read_frames(str(path)))
    content = bytearray(path.read_bytes())
    # The matrix of the track's header: 40 bytes into its content, 16.16 fixed point; 90 degrees clockwise to show.
    matrix = content.index(b"tkhd") + 4 + 40
    for index, value in enumerate((0, 1 << 16, 0, -1 << 16, 0, 0)):
        content[matrix + 4 * index : matrix + 4 * index + 4] = value.to_bytes(4, "big", signed=True)
    turned = list(read_frames(BytesIO(bytes(content))))
    assert torch.equal(turned[0], upright[0].rot90(-1))


def test_a_file_without_pictures_is_refused(tmp_path):
    path = tmp_path / "sound.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="must have a video stream; this"):
        next(read_frames(str(path)))


def test_a_raw_stream_without_times(tmp_path):
    path, raw = written(tmp_path, "H.264 8-bit"), tmp_path / "video.h264"
    with av.open(str(path)) as source, av.open(str(raw), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(raw)) as container:
        assert all(frame.pts is None for frame in container.decode(video=0))
    assert len(list(read_frames(str(raw)))) == COUNT


def test_files_that_ffmpeg_cannot_read_are_oserrors_that_name_them(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video at all")
    with pytest.raises(OSError, match="FFmpeg could not read clip.mp4: ."):
        list(read_frames(str(tmp_path / "clip.mp4")))
    with pytest.raises(OSError, match="FFmpeg could not read the video: ."):
        list(read_frames(BytesIO(b"no video at all")))
