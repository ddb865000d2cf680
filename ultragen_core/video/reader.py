"""The frames of a video file, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import torch

from .errors import as_os_errors


def read_frames(source: str | BytesIO, start: float = 0.0, duration: float = 0.0) -> Iterator[torch.Tensor]:
    """Frames in order, float32 RGB (height, width, 3) in 0..1, turned as the file says; one is in memory at a time.

    start, duration: the part to read, in seconds; duration 0 reads to the end. ValueError for a file without a picture.
    What fails in FFmpeg is an OSError.
    """
    name = Path(source).name if isinstance(source, str) else "the video"
    with as_os_errors(f"read {name}"), av.open(source, mode="r") as container:
        if not container.streams.video:
            raise ValueError(
                f"A video file holds pictures, this one has none ({container.format.name}). Choose another."
            )
        stream = container.streams.video[0]
        first = int(start / stream.time_base)
        if first:
            container.seek(first, stream=stream)
        end = int((start + duration) / stream.time_base) if duration else None
        for frame in container.decode(stream):
            time = first if frame.pts is None else frame.pts  # raw streams tell no times
            if end is not None and time >= end:
                return
            if time >= first:
                yield torch.from_numpy(_rgb(frame))


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    # 8 bits through 8 bits: FFmpeg's way from 8 to 16 or to floats takes 255 for 255 / 256 of white.
    deep = max(component.bits for component in frame.format.components) > 8
    levels = frame.to_ndarray(format="rgb48le" if deep else "rgb24").astype(np.float32)
    return np.ascontiguousarray(np.rot90(levels, round(frame.rotation / 90))) / (65535 if deep else 255)
