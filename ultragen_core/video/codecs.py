"""The codecs on offer, and every check of a video file that needs no decoded frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import av


@dataclass(frozen=True)
class Codec:
    """How to write a video. bits: depth of the frames passed to the encoder, 8 or 16."""

    encoder: str
    pixel_format: str
    container: str
    extension: str
    audio_encoder: str
    bits: int = 8
    tag: str | None = None
    plays_in_browsers: bool = False

    @property
    def lossless(self) -> bool:
        return self.encoder == "ffv1"

    def options(self, crf: int, frames: int, size: tuple[int, int]) -> dict[str, str]:
        """Return the encoder's options for `frames` frames. size: (width, height) in pixels."""
        if self.lossless:
            # Version 3: slice threading, a checksum per slice, intra-only.
            return {"level": "3", "slices": "16", "slicecrc": "1", "g": "1"}
        if self.encoder == "libx265":
            return {"crf": str(crf), "x265-params": "log-level=error" + _x265_workarounds(frames, *size)}
        return {"crf": str(crf)}


# Fewer than 5 frames: x265 plans to reorder more frames than it gets. With 2 it writes random timestamps; with 4 it was
# seen to hang while flushing.
X265_SHORT = ":bframes=0:pools=none:frame-threads=1"
# cu-tree of x265 4.2 writes past its buffers on frames up to 48 pixels wide, which crashes the process later. Off below
# 64 pixels, which leaves a margin.
X265_NARROW = ":cutree=0"
# Shorter side below 32 pixels: HEVC forbids such small coding blocks in frames longer than 4096 pixels.
X265_FLAT = ":allow-non-conformance=1"


def _x265_workarounds(frames: int, width: int, height: int) -> str:
    needed = {X265_SHORT: frames < 5, X265_NARROW: width < 64, X265_FLAT: min(width, height) < 32}
    return "".join(option for option, wanted in needed.items() if wanted)


# Why FFV1 (RFC 9043) and not H.264 in RGB, which is lossless too: browsers show the latter in wrong colours and no
# hardware decodes it. FFV1 plays exactly (mpv, VLC, FFmpeg) or not at all, encodes twice as fast to the same size, and
# confines damage to a slice. Matroska, because not every FFmpeg can put it into MP4.
CODECS = MappingProxyType(
    {
        "H.264 8-bit": Codec("libx264", "yuv420p", "mp4", "mp4", "aac", plays_in_browsers=True),
        # Apple's players require the tag hvc1.
        "H.265 8-bit": Codec("libx265", "yuv420p", "mp4", "mp4", "aac", tag="hvc1"),
        "H.265 10-bit": Codec("libx265", "yuv420p10le", "mp4", "mp4", "aac", bits=16, tag="hvc1"),
        "FFV1 lossless RGB": Codec("ffv1", "bgr0", "matroska", "mkv", "flac"),
    }
)
PREVIEW = CODECS["H.264 8-bit"]
CROPS = MappingProxyType({"keep": None, "1080 lines": 1080, "1440 lines": 1440, "2160 lines": 2160})

_LARGEST_SIDE = 16384
_SMALLEST_SIDE = 16
_SLOWEST, _FASTEST = 1, 240  # frames a second
_LARGEST_CRF = 51
# Rates that have an NTSC form, slower by 1000 / 1001: 24 and 30, their multiples and their halves.
_NTSC = (12, 15, 24, 30, 48, 60, 72, 90, 96, 120, 144, 180, 192, 240)


def check_encoders(codec: Codec, with_audio: bool) -> None:
    """Raise ValueError if this build of PyAV lacks an encoder that the codec needs."""
    needed = [codec.encoder, *([codec.audio_encoder] if with_audio else [])]
    for name in needed:
        if name not in av.codecs_available or not _can_encode(name):
            raise ValueError(
                f"codec needs the encoder {name}, but PyAV {av.__version__} was built without it. "
                "Choose another codec, or install PyAV's wheel from PyPI (pip install av)."
            )


def _can_encode(name: str) -> bool:
    try:
        return av.codec.Codec(name, "w").is_encoder
    except av.codec.codec.UnknownCodecError:
        return False


def check_frame_size(codec: Codec, width: int, height: int) -> None:
    """Raise ValueError for a frame that the codec cannot hold. Sizes in pixels."""
    if min(width, height) < _SMALLEST_SIDE or max(width, height) > _LARGEST_SIDE:
        raise ValueError(
            f"A video must be {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels wide and high, got {width}x{height}. "
            "Start from a latent of another size."
        )
    if codec.pixel_format.startswith("yuv420p") and (width % 2 or height % 2):
        raise ValueError(
            f"H.264 and H.265 store colour at half resolution and need even sides, got {width}x{height}. Choose"
            " another crop, or FFV1 lossless RGB."
        )


def cropped_rows(height: int, lines: int | None) -> slice:
    """Return the centred rows that a crop to `lines` keeps; None keeps all. Raises ValueError for too few rows."""
    if lines is None:
        return slice(0, height)
    if lines > height:
        raise ValueError(f"A crop to {lines} lines needs a video at least that high, got {height}. Choose keep.")
    top = (height - lines) // 2
    return slice(top, top + lines)


def check_crf(crf: int) -> None:
    """Raise ValueError for a CRF outside the encoders' range."""
    if not 1 <= crf <= _LARGEST_CRF:
        raise ValueError(f"crf must be 1 to {_LARGEST_CRF}, got {crf}. The default is 17, visually lossless.")


def frame_rate(fps: float) -> Fraction:
    """Return `fps` as an exact fraction: 23.976 and 23.98 become 24000/1001, 12.5 becomes 25/2.

    Raises ValueError outside 1 to 240, and for NaN and infinity.
    """
    if not (math.isfinite(fps) and _SLOWEST <= fps <= _FASTEST):
        raise ValueError(f"fps must be {_SLOWEST} to {_FASTEST} frames per second, got {fps}. UltraGen's weights: 15.")
    for whole in _NTSC:
        slowed = Fraction(whole * 1000, 1001)
        if abs(fps - slowed) <= 0.005:  # two decimals tell no more
            return slowed
    return Fraction(str(fps)).limit_denominator(1000)


def estimated_bytes(codec: Codec, frames: int, height: int, width: int, crf: int) -> int:
    """Estimate a file's size, to warn of a full disk in time.

    Measured: FFV1 takes 0.44 of the raw size on grainy pictures; H.264 about 0.15 bits per pixel at CRF 17, half at 23.
    """
    pixels = frames * height * width
    return pixels * 3 // 2 if codec.lossless else int(pixels * 0.15 / 8 * 2 ** ((17 - crf) / 6))
