"""What is refused before the first frame, and the error messages."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ultragen_core.video.codecs import (
    CODECS,
    Codec,
    check_crf,
    check_encoders,
    check_frame_size,
    cropped_rows,
    estimated_bytes,
    frame_rate,
)

H264, H265, H265_10, FFV1 = CODECS.values()


def test_a_missing_encoder_is_named():
    with pytest.raises(ValueError, match="needs the encoder libnothing, but PyAV .* Choose another codec"):
        check_encoders(Codec("libnothing", "yuv420p", "mp4", "mp4", "aac"), with_audio=False)
    with pytest.raises(ValueError, match="needs the encoder nosound"):
        check_encoders(Codec("libx264", "yuv420p", "mp4", "mp4", "nosound"), with_audio=True)
    for codec in CODECS.values():
        check_encoders(codec, with_audio=True)


@pytest.mark.parametrize(
    ("codec", "size", "message"),
    [
        (H264, (64, 33), "need even sides, got 64x33"),
        (H265_10, (63, 32), "need even sides, got 63x32"),
        (H264, (16400, 64), "16 to 16384 pixels wide and high, got 16400x64"),
        (H264, (64, 8), "16 to 16384 pixels wide and high, got 64x8"),
    ],
)
def test_impossible_sizes_are_refused(codec, size, message):
    with pytest.raises(ValueError, match=message):
        check_frame_size(codec, *size)
    check_frame_size(FFV1, 63, 33)


def test_crops_are_from_the_centre():
    assert cropped_rows(1088, 1080) == slice(4, 1084)
    assert cropped_rows(1088, None) == slice(0, 1088)
    with pytest.raises(ValueError, match="crop to 1080 lines needs a video at least that high, got 720"):
        cropped_rows(720, 1080)


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        (23.976, "24000/1001"),
        (23.98, "24000/1001"),
        (24000 / 1001, "24000/1001"),
        (29.97, "30000/1001"),
        (47.952, "48000/1001"),
        (59.94, "60000/1001"),
        (119.88, "120000/1001"),
        (239.76, "240000/1001"),
        (14.985, "15000/1001"),
        (12.5, "25/2"),
        (15, "15"),
        (24.0, "24"),
        (23.5, "47/2"),
        (16.667, "16667/1000"),
        (100 / 3, "100/3"),
        (1, "1"),
        (240, "240"),
    ],
)
def test_rates_are_what_is_meant(written, exact):
    assert frame_rate(written) == Fraction(exact)


@pytest.mark.parametrize("fps", [0, -1, 0.999, 240.001, 1e-4, 1e9, float("nan"), float("inf")])
def test_impossible_rates_are_refused(fps):
    with pytest.raises(ValueError, match="fps must be 1 to 240 frames per second, got"):
        frame_rate(fps)


@pytest.mark.parametrize("crf", [0, -3, 52, float("nan")])
def test_impossible_crfs_are_refused(crf):
    with pytest.raises(ValueError, match=r"crf must be 1 to 51, got"):
        check_crf(crf)


def test_estimates_follow_size_and_crf():
    usual = estimated_bytes(H264, 81, 2160, 3840, 17)
    assert estimated_bytes(FFV1, 81, 2160, 3840, 17) > 20 * usual
    assert estimated_bytes(H264, 81, 2160, 3840, 11) == pytest.approx(2 * usual, rel=1e-3)
