"""What can be written, and everything about it that can be known before the first frame is decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import av


@dataclass(frozen=True)
class Codec:
    """A way to write a video. `bits` is the depth of the frames it is given: 8, or 16 to keep more than 8."""

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
        """What to tell the encoder, which will be given `frames` frames of `size`, (width, height) in pixels."""
        if self.lossless:
            # Version 3: threads by slice, a checksum in every slice, every frame decodable alone.
            return {"level": "3", "slices": "16", "slicecrc": "1", "g": "1"}
        if self.encoder == "libx265":
            return {"crf": str(crf), "x265-params": "log-level=error" + _x265_workarounds(frames, *size)}
        return {"crf": str(crf)}


# For videos of a few frames: x265 gives two of them random times, having planned to reorder more, and was once seen to
# flush four for ever, its threads idle.
X265_SHORT = ":bframes=0:pools=none:frame-threads=1"
# For frames up to 48 pixels wide: there x265 4.2 writes past its buffers in cu-tree, which ends the process later.
X265_NARROW = ":cutree=0"
# Its blocks are no larger than the shorter side; below 32 pixels HEVC forbids them in frames longer than 4096.
X265_FLAT = ":allow-non-conformance=1"


def _x265_workarounds(frames: int, width: int, height: int) -> str:
    needed = {X265_SHORT: frames < 5, X265_NARROW: width < 64, X265_FLAT: min(width, height) < 32}
    return "".join(option for option, wanted in needed.items() if wanted)


# FFV1 is the lossless choice and not H.264 in RGB, which is exact too: browsers show the latter in false colours and no
# hardware decodes it, while FFV1 (RFC 9043) either plays exactly (mpv, VLC, FFmpeg) or not at all; files are as large,
# written twice as fast, and damage stays within a slice. MP4 cannot hold it in every FFmpeg, Matroska can.
CODECS = MappingProxyType(
    {
        "H.264 8-bit": Codec("libx264", "yuv420p", "mp4", "mp4", "aac", plays_in_browsers=True),
        # Apple's players ask for the tag hvc1.
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
# The whole rates that broadcasting slows down by 1000 / 1001: 24 and 30, their multiples and their halves.
_NTSC = (12, 15, 24, 30, 48, 60, 72, 90, 96, 120, 144, 180, 192, 240)


def check_encoders(codec: Codec, with_audio: bool) -> None:
    """Raise ValueError where this build of PyAV lacks an encoder that the file needs."""
    needed = [codec.encoder, *([codec.audio_encoder] if with_audio else [])]
    for name in needed:
        if name not in av.codecs_available or not _can_encode(name):
            raise ValueError(
                f"This file needs the encoder {name}, PyAV {av.__version__} was built without it. "
                "Choose another codec, or install the PyAV wheel from PyPI (pip install av)."
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
            f"A video's sides are {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels long, got {width}x{height}. "
            "Start from a latent of another size."
        )
    if codec.pixel_format.startswith("yuv420p") and (width % 2 or height % 2):
        raise ValueError(
            f"{codec.pixel_format} halves the colour's resolution and needs even sides, got {width}x{height}. "
            "Crop to an even number of lines, or choose the lossless codec."
        )


def cropped_rows(height: int, lines: int | None) -> slice:
    """The rows that a crop keeps, from the centre; None keeps all."""
    if lines is None:
        return slice(0, height)
    if lines > height:
        raise ValueError(f"A crop to {lines} lines needs a video at least as high, this one has {height}. Choose keep.")
    top = (height - lines) // 2
    return slice(top, top + lines)


def check_crf(crf: int) -> None:
    """Raise ValueError for a CRF that no encoder takes."""
    if not 1 <= crf <= _LARGEST_CRF:
        raise ValueError(f"crf must be 1 to {_LARGEST_CRF}, got {crf}. 17 looks like the original.")


def frame_rate(fps: float) -> Fraction:
    """Return frames a second as the exact rate that is meant: 23.976 and 23.98 are 24000/1001, 12.5 is 25/2.

    Raises ValueError outside 1 to 240, where NaN and infinity are too.
    """
    if not (math.isfinite(fps) and _SLOWEST <= fps <= _FASTEST):
        raise ValueError(f"fps must be {_SLOWEST} to {_FASTEST} frames a second, got {fps}. UltraGen's weights: 15.")
    for whole in _NTSC:
        slowed = Fraction(whole * 1000, 1001)
        if abs(fps - slowed) <= 0.005:  # what two decimals can tell
            return slowed
    return Fraction(str(fps)).limit_denominator(1000)


def estimated_bytes(codec: Codec, frames: int, height: int, width: int, crf: int) -> int:
    """A guess of a file's size, to see a full disk coming.

    FFV1 came to 0.44 of the raw size on grainy pictures; H.264 spends about 0.15 bits a pixel at CRF 17, half at 23.
    """
    pixels = frames * height * width
    return pixels * 3 // 2 if codec.lossless else int(pixels * 0.15 / 8 * 2 ** ((17 - crf) / 6))
