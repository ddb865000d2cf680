"""Checks of the audio before the decode."""

from __future__ import annotations

import logging
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ultragen_core.video.audio import AudioClip, audio_clips, frames_covered, track_rate
from ultragen_core.video.codecs import CODECS

H264, H265, H265_10, FFV1 = CODECS.values()
SECOND = Fraction(1)


def audio(*shape: int, rate: int = 8000) -> dict:
    waveform = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return {"waveform": waveform, "sample_rate": rate}


@pytest.mark.parametrize("sound", [None, audio(1, 2, 0), audio(0, 2, 9)], ids=["nothing", "no samples", "no waveform"])
def test_no_audio_is_no_sound(sound):
    assert audio_clips(sound, H264, 2, SECOND) == [None, None]


def test_each_video_has_its_waveform_or_the_last_cut_to_its_length():
    given = audio(2, 1, 9000)
    sounds = audio_clips(given, H264, 3, SECOND)
    assert [sound.sample_rate for sound in sounds] == [8000] * 3
    for sound, index in zip(sounds, (0, 1, 1), strict=True):
        assert np.array_equal(sound.waveform, given["waveform"][index, :, :8000].numpy())
    assert len(audio_clips(given, H264, 1, SECOND)) == 1


def test_a_rate_of_numpy_is_a_rate():
    (sound,) = audio_clips(audio(1, 1, 9, rate=np.int64(44100)), H264, 1, SECOND)
    assert sound.sample_rate == 44100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int16, torch.int32])
def test_samples_of_other_types_are_floats(dtype):
    scale = 1 if dtype.is_floating_point else -torch.iinfo(dtype).min
    samples = (torch.tensor([[[0.5, -1.0, 0.25]]], dtype=torch.float64) * scale).to(dtype)
    (sound,) = audio_clips({"waveform": samples, "sample_rate": 8000}, H264, 1, SECOND)
    assert sound.waveform.dtype == np.float32 and sound.waveform.tolist() == [[0.5, -1.0, 0.25]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (audio(1, 4, 9), "1, 2 or 6 channels, got 4"),
        (audio(2, 9), r"axes \(batch, channels, samples\) and a sample rate, got shape \(2, 9\)"),
        (audio(1, 2, 9, rate=0), "at least 1 Hz, got 0"),
        (audio(1, 2, 9, rate=math.inf), "and a sample rate, got .* rate inf"),
        (audio(1, 2, 9, rate=math.nan), "and a sample rate, got .* rate nan"),
        ({"waveform": torch.zeros(1, 1, 9, dtype=torch.uint8), "sample_rate": 8000}, "got torch.uint8"),
    ],
)
def test_impossible_audio_is_refused_briefly(given, message):
    with pytest.raises(ValueError, match=message) as error:
        audio_clips(given, FFV1, 1, SECOND)
    assert len(str(error.value)) < 200


def test_values_that_are_not_finite_are_located():
    given = audio(2, 2, 8000)
    given["waveform"][1, 0, 6000] = float("inf")
    given["waveform"][1, 1, 2000:2004] = float("nan")
    message = "5 of 32000 samples are NaN or infinite, the first in channel 2 of waveform 2 at 0.250 s"
    with pytest.raises(ValueError, match=message):
        audio_clips(given, H264, 2, SECOND)
    # Neither the first waveform, nor what comes before that time, has any.
    assert audio_clips(given, H264, 1, SECOND)
    assert audio_clips(given, H264, 2, Fraction(1, 4))


def test_audio_beyond_full_scale_is_reported(caplog):
    audio_clips({"waveform": torch.tensor([[[0.0, -3.0]]]), "sample_rate": 8000}, H264, 1, SECOND)
    assert "peaks at 3 times full scale and is clipped" in caplog.text


@pytest.mark.parametrize(
    ("codec", "rate", "written"),
    [
        (H264, 44100, 44100),
        (H264, 37000, 44100),
        (H265, 192000, 48000),
        (H264, 1000, 8000),
        (FFV1, 192000, 192000),
        (FFV1, 37001, 37001),
        (FFV1, 100001, 48000),
        (FFV1, 768000, 48000),
    ],
)
def test_rates_that_a_codec_lacks_are_resampled_and_reported(caplog, codec, rate, written):
    caplog.set_level(logging.INFO)
    assert track_rate(codec, rate) == written
    audio_clips(audio(1, 1, 9, rate=rate), codec, 1, SECOND)
    assert (f"resampling it to {written} Hz" in caplog.text) == (rate != written)


def test_a_video_that_ends_with_its_sound():
    second = AudioClip(np.zeros((1, 8000)), 8000)
    assert frames_covered(second, Fraction(15)) == 15
    assert frames_covered(second, Fraction(24000, 1001)) == 24
    assert frames_covered(AudioClip(np.zeros((1, 1)), 8000), Fraction(15)) == 1
