"""Reads the frames of a video file one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange

from .errors import as_os_errors

# FFmpeg 8.0 overflows where it converts 4:2:0 with more than 8 bits to packed pixels; with planes it does not.
_DEEP = "gbrp16le" if av.library_versions["libswscale"][:2] == (9, 1) else "rgb48le"


def read_frames(source: str | BytesIO, start: float = 0.0, duration: float = 0.0) -> Iterator[torch.Tensor]:
    """Yield frames in order, float32 RGB (height, width, 3) in 0..1, rotated as the file's metadata says.

    Only one frame is in memory at a time. start, duration: the part to read, in seconds; duration 0 reads to the end.
    Raises ValueError for a file without a video stream, OSError for errors of FFmpeg.
    """
    name = Path(source).name if isinstance(source, str) else "the video"
    with as_os_errors(f"read {name}"), av.open(source, mode="r") as container:
        if not container.streams.video:
            raise ValueError(
                f"A video file must have a video stream; this {container.format.name} has none. Choose another file."
            )
        stream = container.streams.video[0]
        first = int(start / stream.time_base)
        if first:
            container.seek(first, stream=stream)
        end = int((start + duration) / stream.time_base) if duration else None
        for frame in container.decode(stream):
            time = first if frame.pts is None else frame.pts  # raw streams have no timestamps
            if end is not None and time >= end:
                return
            if time >= first:
                yield torch.from_numpy(_rgb(frame))


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    # Read 8-bit video as 8 bits: FFmpeg's conversion to 16 bits or floats maps 255 to 255/256 of white.
    deep = max(component.bits for component in frame.format.components) > 8
    levels = frame.to_ndarray(format=_DEEP if deep else "rgb24", **_ranges(frame)).astype(np.float32)
    return np.ascontiguousarray(np.rot90(levels, round(frame.rotation / 90))) / (65535 if deep else 255)


def _ranges(frame: av.VideoFrame) -> dict[str, ColorRange]:
    """Return arguments without which PyAV before 17 takes every YUV frame for BT.601: two ranges that differ.

    FFmpeg ignores the range of RGB, which is always full.
    """
    if frame.format.is_rgb or len(frame.format.components) < 3:
        return {}
    if frame.color_range == ColorRange.JPEG:
        return {"src_color_range": ColorRange.JPEG, "dst_color_range": ColorRange.MPEG}
    return {"src_color_range": ColorRange.MPEG, "dst_color_range": ColorRange.JPEG}
