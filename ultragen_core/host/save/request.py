"""The request for a video file, and the checks before it is decoded: names, sizes, codec, audio, disk space."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from fractions import Fraction
from itertools import count
from pathlib import Path

import torch
from comfy.cli_args import args

from ...storage.files import check_folder, check_name
from ...video.audio import AudioClip, audio_clips, frames_covered
from ...video.codecs import (
    CODECS,
    CROPS,
    PREVIEW,
    Codec,
    check_crf,
    check_encoders,
    check_frame_size,
    cropped_rows,
    estimated_bytes,
    frame_rate,
)
from ...video.frames import FrameBuffer
from ...video.prefix import DEFAULT_NAME, check_length, check_prefix, fill_placeholders, safe_prefix
from ..memory import may_pin
from ..ram import free_ram
from ..vae.shapes import decoded_shape

KEEP, KEEP_UNTIL_SAVED, KEEP_NEVER = "keep", "until the video is saved", "off"
SIDE_FILES = {"off": None, "json": ".json"}  # choice -> file extension

# Decoded frames that need more than this share of the free RAM are buffered on disk.
RAM_SHARE = 0.5


@dataclass(frozen=True)
class Folders:
    """ComfyUI's folders, and its `get_save_image_path`, which numbers names and keeps them inside."""

    output: str
    temp: str
    input: str
    save_image_path: Callable[[str, str, int, int], tuple[str, str, int, str, str]]

    def make_names(self, folder: str, prefix: str, extension: str, width: int = 0, height: int = 0) -> Iterator[Path]:
        """Create the folder of `prefix` and return an endless iterator of numbered names, normally free ones.

        width, height: for %width% and %height%. Raises ValueError or OSError for an unusable prefix.
        """
        safe = safe_prefix(prefix, folder)
        try:
            path, name, counter, subfolder, _ = self.save_image_path(safe, folder, width, height)
        except OSError as error:
            raise OSError(
                f"The folder of {prefix} cannot be created in {folder} ({error.strerror}). Give ComfyUI's user the"
                " right to write there, choose another filename_prefix, or start ComfyUI with --output-directory."
            ) from error
        except Exception as error:  # ComfyUI raises a plain Exception here
            raise ValueError(
                f"filename_prefix must stay inside the output folder {folder}, but a symbolic link in {prefix!r} leads"
                " out of it. Choose another name, or start ComfyUI with --output-directory."
            ) from error
        check_length(f"{subfolder}/{name}")
        return (Path(path) / f"{name}_{number:05}_.{extension}" for number in count(max(counter, 1)))

    def check(self, prefix: str) -> None:
        """Check `prefix` as far as possible before its placeholders are filled in.

        Creates the folder before the first placeholder. Errors (ValueError, OSError) begin with the input's name.
        """
        check_prefix(prefix, self.output)
        known, placeholder, _ = prefix.partition("%")
        if placeholder:
            known = re.sub(r"[^/\\]*$", DEFAULT_NAME, known)
        try:
            check_name(self.make_names(self.output, known, PREVIEW.extension))
        except OSError as error:
            raise OSError(f"filename_prefix {prefix}: {error}") from error


@dataclass(frozen=True)
class VideoSettings:
    """The node's widgets.

    codec, crop, side_file: keys of CODECS, CROPS and SIDE_FILES. keep_latent: one of the KEEP constants. tile: side in
    pixels, None for automatic. details: text to store, such as prompt and seed as JSON. trim_to_audio: end the video
    with its audio if that is shorter. gpus: how many decode, 0 for all. max_frames: end the video after this many
    frames; 0 saves all.
    """

    prefix: str
    fps: float
    codec: str
    crf: int
    crop: str = "keep"
    keep_latent: str = KEEP
    tile: int | None = None
    details: str = ""
    side_file: str = "off"
    trim_to_audio: bool = False
    gpus: int = 1
    max_frames: int = 0


@dataclass(frozen=True)
class Request:
    """One call of the node: settings, folders, and the metadata (prompt, workflow) to embed as JSON."""

    settings: VideoSettings
    folders: Folders
    metadata: Mapping
    now: datetime = field(default_factory=datetime.now)

    @property
    def texts(self) -> dict[str, str]:
        """The texts to embed in the files, by key."""
        if args.disable_metadata:
            return {}
        texts = {key: json.dumps(_as_json(value)) for key, value in self.metadata.items() if key.isprintable()}
        # Players show a comment. FFmpeg accepts neither lone surrogates nor NUL.
        details = self.settings.details.encode(errors="replace").decode().replace("\0", "")
        return texts | ({"comment": details} if details else {})

    @property
    def prefix(self) -> str:
        """The prefix with placeholders filled in, relative to the output folder. Raises ValueError if outside."""
        prompt, workflow = (self.metadata.get(name) for name in ("prompt", "workflow"))
        filled = fill_placeholders(self.settings.prefix, prompt, workflow, self.now)
        return safe_prefix(filled, self.folders.output)


def _as_json(value: object) -> object:
    """Return `value` with null for NaN and infinity, and text for what JSON cannot hold.

    The prompt may hold any object: ComfyUI writes there what IS_CHANGED of other packs' nodes returns.
    """
    if isinstance(value, Mapping):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


@dataclass(frozen=True)
class CheckedRequest:
    """A request that has passed `check_request`.

    Sizes in pixels. rows: those that the crop keeps. ram_limit: bytes for decoded frames.
    """

    request: Request
    codec: Codec
    fps: Fraction
    batch: int
    frames: int
    height: int
    width: int
    rows: slice
    audio: list[AudioClip | None]
    side_file: str | None
    ram_limit: int

    @property
    def settings(self) -> VideoSettings:
        return self.request.settings

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.rows.stop - self.rows.start

    def make_names(self) -> Iterator[Path]:
        """Create the output folder and return an endless iterator of names for the next video."""
        folders = self.request.folders
        return folders.make_names(folders.output, self.request.prefix, self.codec.extension, *self.size)

    def trimmed(self, clip: AudioClip | None) -> CheckedRequest:
        """Return the request with the number of frames that max_frames and trim_to_audio leave."""
        frames = min(self.frames, self.settings.max_frames or self.frames)
        if clip is not None and self.settings.trim_to_audio:
            frames = min(frames, frames_covered(clip, self.fps))
        return replace(self, frames=frames)

    def buffer(self) -> FrameBuffer:
        shape = (self.frames, self.height, self.width)
        return FrameBuffer(*shape, self.codec.bits, self.request.folders.temp, self.ram_limit, may_pin())


def check_request(vae, samples: torch.Tensor, request: Request, audio: Mapping | None) -> CheckedRequest:
    """Check the request against the latent (b, c, t, h, w), the VAE and the audio. Raises ValueError."""
    if samples.ndim != 5:
        raise ValueError(
            f"A video's latent must have 5 axes (batch, channels, frames, height, width), got {tuple(samples.shape)}."
            " Connect the latent of a video model."
        )
    settings = request.settings
    codec, lines = chosen("codec", CODECS, settings.codec), chosen("crop", CROPS, settings.crop)
    side_file = chosen("side_file", SIDE_FILES, settings.side_file)
    check_crf(settings.crf)
    check_encoders(codec, audio is not None)
    batch, frames, height, width = decoded_shape(vae, tuple(samples.shape))
    rows = cropped_rows(height, lines)
    check_frame_size(codec, width, rows.stop - rows.start)
    fps = frame_rate(settings.fps)
    clips = audio_clips(audio, codec, batch, frames / fps)
    ram_limit = int(free_ram() * RAM_SHARE)
    return CheckedRequest(request, codec, fps, batch, frames, height, width, rows, clips, side_file, ram_limit)


def chosen(name: str, options: Mapping, value: object) -> object:
    """Return options[value]. Raises ValueError for a value that is not among them."""
    try:
        return options[value]
    except (KeyError, TypeError):
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}. Choose one of them.") from None


def check_disk_space(checked: CheckedRequest) -> None:
    """Raise OSError if the disk is too full for the videos or for the decoded frames buffered on it."""
    width, height = checked.size
    needed = checked.batch * estimated_bytes(checked.codec, checked.frames, height, width, checked.settings.crf)
    buffered = FrameBuffer.size(checked.frames, checked.height, checked.width, checked.codec.bits)
    output = next(checked.make_names()).parent
    if buffered <= checked.ram_limit:
        check_folder(output, needed, "video")
        return
    temp = Path(checked.request.folders.temp)
    temp.mkdir(parents=True, exist_ok=True)
    if os.stat(output).st_dev == os.stat(temp).st_dev:
        check_folder(output, needed + buffered, "video, together with its decoded frames,")
        check_folder(temp, 0, "decoded video")
    else:
        check_folder(output, needed, "video")
        check_folder(temp, buffered, "decoded video")
