"""The audio of a video: checked before the decode, then encoded in step with the frames."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real
from types import MappingProxyType
from typing import NamedTuple

import av
import numpy as np
import torch

from .codecs import Codec

_LAYOUTS = MappingProxyType({1: "mono", 2: "stereo", 6: "5.1"})
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_COMMON_RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000)
_PIECE = 1 << 16  # samples encoded at a time

log = logging.getLogger(__name__)


class AudioClip(NamedTuple):
    """Audio for one video. waveform: float (channels, samples) in -1..1. sample_rate: Hz."""

    waveform: np.ndarray
    sample_rate: int


def audio_clips(audio: Mapping | None, codec: Codec, videos: int, seconds: Fraction) -> list[AudioClip | None]:
    """Return one clip for each video, cut to `seconds`; None for each video where there is no audio.

    audio: ComfyUI's AUDIO, {"waveform": (batch, channels, samples), "sample_rate": Hz}, or None. The n-th video gets
    the n-th waveform, or the last one. A waveform without samples counts as no audio. A rate that the codec does not
    support is logged here and resampled while encoding.

    Raises ValueError for audio that cannot be written.
    """
    if audio is None:
        return [None] * videos
    waveforms, rate = audio.get("waveform"), audio.get("sample_rate")
    is_rate = isinstance(rate, Real) and math.isfinite(rate)
    if not isinstance(waveforms, torch.Tensor) or waveforms.ndim != 3 or not is_rate:
        shape = tuple(getattr(waveforms, "shape", ()))
        raise ValueError(
            f"Audio must have the axes (batch, channels, samples) and a sample rate, got shape {shape} and rate {rate}."
            " Pass it through one of ComfyUI's own audio nodes."
        )
    rate = int(rate)
    if not waveforms.numel():
        return [None] * videos
    _check_format(waveforms, rate)
    waveforms = _as_floats(waveforms[:videos, :, : math.ceil(seconds * rate)])
    _check_values(waveforms, rate)
    if (written := track_rate(codec, rate)) != rate:
        log.info("UltraGen: .%s cannot hold audio at %d Hz; resampling it to %d Hz.", codec.extension, rate, written)
    return [AudioClip(waveforms[min(index, len(waveforms) - 1)].numpy(), rate) for index in range(videos)]


def track_rate(codec: Codec, rate: int) -> int:
    """Return the rate in Hz to write: `rate` if the codec supports it, else the next common one, at most 48000."""
    if codec.audio_encoder == "aac":
        supported = rate in _AAC_RATES
    else:  # a FLAC header holds 16 bits, in Hz or in tens of Hz
        supported = rate < 1 << 16 or (rate <= 655350 and rate % 10 == 0)
    return rate if supported else next((common for common in _COMMON_RATES if common > rate), _COMMON_RATES[-1])


def frames_covered(clip: AudioClip, fps: Fraction) -> int:
    """Count the frames that start before the clip ends; at least 1."""
    return max(1, math.ceil(clip.waveform.shape[1] * fps / clip.sample_rate))


def _check_format(waveforms: torch.Tensor, rate: int) -> None:
    channels = waveforms.shape[1]
    if channels not in _LAYOUTS:
        raise ValueError(f"Audio must have 1, 2 or 6 channels, got {channels}. Mix it down to stereo first.")
    if rate < 1:
        raise ValueError(f"Audio must have a rate of at least 1 Hz, got {rate}. Load or generate it again.")
    if waveforms.dtype.is_complex or waveforms.dtype in (torch.bool, torch.uint8):
        raise ValueError(f"Audio must be floats in -1..1 or signed integers, got {waveforms.dtype}. Convert it first.")


def _as_floats(waveforms: torch.Tensor) -> torch.Tensor:
    """Return float32 on the CPU; integers are divided by their full scale."""
    if waveforms.dtype.is_floating_point:
        return waveforms.detach().float().cpu()
    return waveforms.cpu().float() / -torch.iinfo(waveforms.dtype).min


def _check_values(waveforms: torch.Tensor, rate: int) -> None:
    broken = ~torch.isfinite(waveforms)
    if broken.any():
        first = int(broken.flatten(0, 1).any(0).int().argmax())
        index, channel = broken[:, :, first].nonzero()[0].tolist()
        where = f"channel {channel + 1}" + (f" of waveform {index + 1}" if len(waveforms) > 1 else "")
        raise ValueError(
            f"Audio must be finite: {int(broken.sum())} of {broken.numel()} samples are NaN or infinite, the first in "
            f"{where} at {first / rate:.3f} s. Generate the audio again, or disconnect it."
        )
    peak = float(waveforms.abs().max())
    if peak > 1:
        log.warning("UltraGen: the audio peaks at %.3g times full scale and is clipped. Lower its volume.", peak)


class AudioTrack:
    """Encodes a clip into a container in step with the video.

    The track lasts `seconds`, like the video: a longer clip is cut, a shorter one is padded with silence.
    """

    def __init__(self, container: av.container.OutputContainer, codec: Codec, clip: AudioClip, seconds: Fraction):
        self._container, self._clip = container, clip
        self._layout = _LAYOUTS[clip.waveform.shape[0]]
        self._length = math.ceil(seconds * clip.sample_rate)
        self._written = 0
        rate = track_rate(codec, clip.sample_rate)
        self._stream = container.add_stream(codec.audio_encoder, rate=rate, layout=self._layout)

    def write_until(self, seconds: Fraction) -> None:
        """Encode all samples before this time."""
        end = min(self._length, int(seconds * self._clip.sample_rate))
        while self._written < end:
            self._encode(min(end - self._written, _PIECE))

    def finish(self) -> None:
        """Encode the rest and flush the encoder."""
        self.write_until(Fraction(self._length, self._clip.sample_rate))
        self._container.mux(self._stream.encode(None))

    def _encode(self, samples: int) -> None:
        heard = self._clip.waveform[:, self._written : self._written + samples]
        piece = np.zeros((len(heard), samples), np.float32)
        np.clip(heard, -1, 1, out=piece[:, : heard.shape[1]], casting="same_kind")
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=self._layout)
        frame.sample_rate = self._clip.sample_rate
        frame.time_base = Fraction(1, self._clip.sample_rate)
        frame.pts = self._written
        self._written += samples
        self._container.mux(self._stream.encode(frame))
