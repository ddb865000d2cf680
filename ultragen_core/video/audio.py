"""The audio of a video: what is refused before the decode, and the track that grows beside the frames."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import NamedTuple

import av
import numpy as np
import torch

from .codecs import Codec

_LAYOUTS = MappingProxyType({1: "mono", 2: "stereo", 6: "5.1"})
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_USUAL_RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000)
_PIECE = 1 << 16  # samples encoded at a time


class Sound(NamedTuple):
    """Audio for a whole video: float (channels, samples) in -1..1, and samples a second."""

    waveform: np.ndarray
    sample_rate: int


def soundtracks(audio: Mapping | None, codec: Codec, videos: int, seconds: Fraction) -> list[Sound | None]:
    """Return the sound of each video, cut to `seconds`; None for videos without.

    `audio` is ComfyUI's AUDIO, {"waveform": (batch, channels, samples), "sample_rate": Hz}, or None. Its n-th waveform,
    or its last, goes with the n-th video. Audio without samples is none. A rate that the codec does not take is
    resampled later, and the log says so. Raises ValueError for audio that cannot be written.
    """
    if audio is None:
        return [None] * videos
    waveforms, rate = audio.get("waveform"), audio.get("sample_rate")
    if not isinstance(waveforms, torch.Tensor) or waveforms.ndim != 3 or not isinstance(rate, (int, float)):
        shape = tuple(getattr(waveforms, "shape", ()))
        raise ValueError(
            f"Audio has the axes (batch, channels, samples), got the shape {shape} and a rate of {rate}. Connect the"
            " audio of ComfyUI's own nodes."
        )
    rate = int(rate)
    if not waveforms.numel():
        return [None] * videos
    _check_format(waveforms, rate)
    waveforms = _as_floats(waveforms[:videos, :, : math.ceil(seconds * rate)])
    _check_values(waveforms, rate)
    if (written := track_rate(codec, rate)) != rate:
        logging.info(
            "UltraGen: %s is written with %d Hz, the audio of %d Hz is resampled.", codec.extension, written, rate
        )
    return [Sound(waveforms[min(index, len(waveforms) - 1)].numpy(), rate) for index in range(videos)]


def track_rate(codec: Codec, rate: int) -> int:
    """The rate at which audio of `rate` Hz is written: the same, or the next higher usual one, at most 48000."""
    if codec.audio_encoder == "aac":
        taken = rate in _AAC_RATES
    else:  # FLAC counts Hz up to 16 bits, above that tens of Hz
        taken = rate < 1 << 16 or (rate <= 655350 and rate % 10 == 0)
    return rate if taken else next((usual for usual in _USUAL_RATES if usual > rate), _USUAL_RATES[-1])


def frames_heard(sound: Sound, fps: Fraction) -> int:
    """How many frames a video has that ends with its sound; the last may begin before the end. At least one."""
    return max(1, math.ceil(sound.waveform.shape[1] * fps / sound.sample_rate))


def _check_format(waveforms: torch.Tensor, rate: int) -> None:
    channels = waveforms.shape[1]
    if channels not in _LAYOUTS:
        raise ValueError(f"Audio has 1, 2 or 6 channels, got {channels}. Mix it down first.")
    if rate < 1:
        raise ValueError(f"Audio has a rate of at least 1 Hz, got {rate}. Load or make the audio again.")
    if waveforms.dtype.is_complex or waveforms.dtype in (torch.bool, torch.uint8):
        raise ValueError(f"Audio is floats in -1 to 1 or signed integers, got {waveforms.dtype}. Convert it first.")


def _as_floats(waveforms: torch.Tensor) -> torch.Tensor:
    """float32 on the CPU; integers as shares of their full scale."""
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
            f"Audio must be finite, {int(broken.sum())} of {broken.numel()} samples are NaN or infinite, the first in "
            f"{where} at {first / rate:.3f} s. Make the audio again, or disconnect it."
        )
    peak = float(waveforms.abs().max())
    if peak > 1:
        logging.warning("UltraGen: the audio reaches %.3g times full scale and is clipped. Lower its volume.", peak)


class AudioTrack:
    """Encodes a sound beside the frames of a container, as far as the video has come.

    It lasts `seconds`, as the video does: a longer sound is cut, a shorter one ends in silence.
    """

    def __init__(self, container: av.container.OutputContainer, codec: Codec, sound: Sound, seconds: Fraction):
        self._container, self._sound = container, sound
        self._layout = _LAYOUTS[sound.waveform.shape[0]]
        self._length = math.ceil(seconds * sound.sample_rate)
        self._written = 0
        rate = track_rate(codec, sound.sample_rate)
        self._stream = container.add_stream(codec.audio_encoder, rate=rate, layout=self._layout)

    def write_until(self, seconds: Fraction) -> None:
        """Encode up to that time."""
        end = min(self._length, int(seconds * self._sound.sample_rate))
        while self._written < end:
            self._encode(min(end - self._written, _PIECE))

    def finish(self) -> None:
        """Encode the rest, and what the encoder holds back."""
        self.write_until(Fraction(self._length, self._sound.sample_rate))
        self._container.mux(self._stream.encode(None))

    def _encode(self, samples: int) -> None:
        heard = self._sound.waveform[:, self._written : self._written + samples]
        piece = np.zeros((len(heard), samples), np.float32)
        np.clip(heard, -1, 1, out=piece[:, : heard.shape[1]], casting="same_kind")
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=self._layout)
        frame.sample_rate = self._sound.sample_rate
        frame.time_base = Fraction(1, self._sound.sample_rate)
        frame.pts = self._written
        self._written += samples
        self._container.mux(self._stream.encode(frame))
