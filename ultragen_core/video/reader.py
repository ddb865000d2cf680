"""Reads the frames of a video file one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import torch

from .errors import as_os_errors


def read_frames(source: str | BytesIO, start: float = 0.0, duration: float = 0.0) -> Iterator[torch.Tensor]:
    """Yield frames in order, float32 RGB (height, width, 3) in 0..1, rotated as the file's metadata says.

    Only one frame is in memory at a time. start, duration: the part to read, in seconds; duration 0 reads to the end.
    Raises ValueError for a file without a video stream, OSError for errors of FFmpeg.
    """
    name = Path(source).name if isinstance(source, str) else "the video"
    with as_os_errors(f"read {name}"), av.open(source, mode="r") as container:
        if not container.streams.video:
            raise ValueError(
                f"A video file must have a video stream, this {container.format.name} has none. Choose another file."
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
    levels = frame.to_ndarray(format="rgb48le" if deep else "rgb24").astype(np.float32)
    return np.ascontiguousarray(np.rot90(levels, round(frame.rotation / 90))) / (65535 if deep else 255)
