"""Writes one video file, frame by frame, in BT.709."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from .audio import AudioClip, AudioTrack
from .codecs import Codec
from .errors import as_os_errors

# Code points of ITU-T H.273. BT.709 has the same one for primaries, transfer and matrix.
_RGB = 0
_BT709 = 1
# FFmpeg's enum AVColorRange.
_LIMITED_RANGE = 1
_FULL_RANGE = 2


class VideoWriter:
    """Writes one file; a context manager. Errors of FFmpeg are raised as OSError.

    Call `finish` after the last frame, inside the context: without it the file is closed, but lacks frames.

    Frames are RGB (height, width, 3), uint8, or uint16 for codecs of 16 bits. size: (width, height) of the file; frames
    of another size are scaled.

    Colour: the 4:2:0 codecs are converted to BT.709 limited range and tagged so. (PyAV's default is untagged BT.601,
    which players take for BT.709 at these sizes.) The lossless codec stores the RGB values themselves.

    Audio is encoded in step with the frames, so that neither piles up in memory.
    """

    def __init__(
        self,
        path: Path,
        codec: Codec,
        size: tuple[int, int],
        fps: Fraction,
        crf: int,
        frames: int,
        audio: AudioClip | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        self._codec, self._size, self._fps, self._frames = codec, size, fps, frames
        self._written = 0
        self._closed = False
        # use_metadata_tags, as ComfyUI's own nodes set it: a file dropped on the canvas opens its workflow.
        options = {"movflags": "use_metadata_tags+faststart"} if codec.container == "mp4" else {}
        self._doing = f"write {path.name}"
        with as_os_errors(self._doing):
            self._container = av.open(str(path), "w", format=codec.container, options=options)
        try:
            for key, text in (metadata or {}).items():
                self._container.metadata[key] = text
            self._stream = self._add_video(codec.options(crf, frames, size))
            self._track = None if audio is None else AudioTrack(self._container, codec, audio, frames / fps)
        except BaseException:
            self._close()
            raise

    def _add_video(self, options: dict[str, str]):
        stream = self._container.add_stream(self._codec.encoder, rate=self._fps)
        stream.width, stream.height = self._size
        stream.pix_fmt = self._codec.pixel_format
        stream.options = options
        if self._codec.tag is not None:
            stream.codec_context.codec_tag = self._codec.tag
        context = stream.codec_context
        context.color_primaries = context.color_trc = _BT709
        context.colorspace = _RGB if self._codec.lossless else _BT709
        context.color_range = _FULL_RANGE if self._codec.lossless else _LIMITED_RANGE
        return stream

    def write(self, rgb: np.ndarray) -> None:
        """Encode the next frame. Raises ValueError for another shape or dtype, and after the file was closed."""
        self._check_open()
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"A frame must be uint8 or uint16 of shape (height, width, 3), got {rgb.dtype} of shape {rgb.shape}."
            )
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24" if rgb.dtype == np.uint8 else "rgb48le")
        with as_os_errors(self._doing):
            frame = self._converted(frame)
            frame.pts = self._written
            frame.time_base = 1 / self._fps
            self._written += 1
            self._mux(self._stream.encode(frame))

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:
            packet.stream = self._stream
            time = packet.dts * packet.time_base
            self._container.mux(packet)
            if self._track is not None:
                self._track.write_until(time)

    def _converted(self, frame: av.VideoFrame) -> av.VideoFrame:
        width, height = self._size
        if self._codec.lossless:
            return frame.reformat(width, height, self._codec.pixel_format)
        return frame.reformat(
            width,
            height,
            self._codec.pixel_format,
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC,
        )

    def finish(self, still_wanted: Callable[[], None]) -> None:
        """Flush the encoder, which holds back dozens of frames, and close the file.

        still_wanted: called before each packet; it raises to interrupt. Raises ValueError if the number of frames
        written is not `frames`, because x265 may then hang, and after the file was closed.
        """
        self._check_open()
        if self._written != self._frames or not self._written:
            raise ValueError(f"A file must get the {self._frames} frames announced, got {self._written}.")
        with as_os_errors(self._doing):
            self._mux(_while_wanted(self._stream.codec_context.encode_lazy(None), still_wanted))
            if self._track is not None:
                self._track.finish()
            self._closed = True
            self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def _check_open(self) -> None:
        if self._closed:  # PyAV would crash the process
            raise ValueError(f"Could not {self._doing}: the file is closed. Create a new VideoWriter.")

    def _close(self) -> None:
        self._closed = True
        # Without effect after `finish`. Closing writes a trailer, which may fail, too; the first error is the one worth
        # reading.
        with suppress(OSError, ValueError):
            self._container.close()


def _while_wanted(packets: Iterator[av.Packet], still_wanted: Callable[[], None]) -> Iterator[av.Packet]:
    for packet in packets:
        still_wanted()
        yield packet
