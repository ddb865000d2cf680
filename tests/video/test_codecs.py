"""What is refused before the first frame, and the sentences that say so."""

from __future__ import annotations

import pytest

from ultragen_core.video.codecs import (
    CODECS,
    Codec,
    check_audio,
    check_encoders,
    check_frame_size,
    cropped_rows,
    estimated_bytes,
)

H264, H265, H265_10, FFV1 = CODECS.values()


def test_a_missing_encoder_is_named():
    with pytest.raises(ValueError, match="needs the encoder libnothing, PyAV .* Choose another codec"):
        check_encoders(Codec("libnothing", "yuv420p", "mp4", "mp4", "aac"), with_audio=False)
    with pytest.raises(ValueError, match="needs the encoder nosound"):
        check_encoders(Codec("libx264", "yuv420p", "mp4", "mp4", "nosound"), with_audio=True)
    for codec in CODECS.values():
        check_encoders(codec, with_audio=True)


@pytest.mark.parametrize(
    ("codec", "size", "message"),
    [
        (H264, (64, 33), "needs even sides, got 64x33"),
        (H265_10, (63, 32), "needs even sides, got 63x32"),
        (H264, (16400, 64), "16 to 16384 pixels long, got 16400x64"),
        (H264, (64, 8), "16 to 16384 pixels long, got 64x8"),
    ],
)
def test_impossible_sizes_are_said(codec, size, message):
    with pytest.raises(ValueError, match=message):
        check_frame_size(codec, *size)
    check_frame_size(FFV1, 63, 33)


def test_crops_are_from_the_centre():
    assert cropped_rows(1088, 1080) == slice(4, 1084)
    assert cropped_rows(1088, None) == slice(0, 1088)
    with pytest.raises(ValueError, match="crop to 1080 lines needs a video at least as high, this one has 720"):
        cropped_rows(720, 1080)


def test_impossible_sound_is_said():
    check_audio(H264, 2, 44100)
    with pytest.raises(ValueError, match="1, 2 or 6 channels, got 4"):
        check_audio(H264, 4, 44100)
    with pytest.raises(ValueError, match="aac takes .* got 37000"):
        check_audio(H264, 2, 37000)


def test_estimates_follow_size_and_quality():
    usual = estimated_bytes(H264, 81, 2160, 3840, 17)
    assert estimated_bytes(FFV1, 81, 2160, 3840, 17) > 20 * usual
    assert estimated_bytes(H264, 81, 2160, 3840, 11) == pytest.approx(2 * usual, rel=1e-3)
