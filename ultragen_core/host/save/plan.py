"""What is asked for and checked before a video is decoded: names, sizes, codec, audio, room."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from fractions import Fraction
from itertools import count
from pathlib import Path

import torch
from comfy.cli_args import args

from ...storage.files import check_folder
from ...video.audio import Sound, frames_heard, soundtracks
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
from ...video.prefix import check_length, check_prefix, fill_placeholders, safe_prefix
from ..memory import free_ram
from ..vae.patch import decoded_shape, may_pin

KEEP, KEEP_UNTIL_SAVED, KEEP_NOT = "keep", "until the video is saved", "off"
SIDE_FILES = {"off": None, "json": ".json"}  # the endings

# Frames that would take more than this share of the free RAM wait on disk.
RAM_SHARE = 0.5


@dataclass(frozen=True)
class Folders:
    """ComfyUI's output and temp folder, and its `get_save_image_path`, which numbers names and confines them."""

    output: str
    temp: str
    name: Callable[[str, str, int, int], tuple[str, str, int, str, str]]

    def names(self, folder: str, prefix: str, extension: str, width: int = 0, height: int = 0) -> Iterator[Path]:
        """Numbered names from the one that ComfyUI takes for free on, without end. Makes the folder.

        width, height: for %width% and %height%. Raises ValueError or OSError for a prefix that cannot be used.
        """
        safe = safe_prefix(prefix, folder)
        try:
            path, name, counter, subfolder, _ = self.name(safe, folder, width, height)
        except OSError as error:
            raise OSError(
                f"The folder of {prefix} cannot be made in {folder} ({error.strerror}). Give ComfyUI's user the right"
                " to write there, choose another filename_prefix, or start ComfyUI with another folder."
            ) from error
        except Exception as error:  # ComfyUI's own refusal has no class of its own
            raise ValueError(
                f"filename_prefix must not lead outside the output folder {folder}, got {prefix!r}, in which a link "
                "does. Choose another name, or start ComfyUI with --output-directory."
            ) from error
        check_length(f"{subfolder}/{name}")
        return (Path(path) / f"{name}_{number:05}_.{extension}" for number in count(max(counter, 1)))

    def check(self, prefix: str) -> None:
        """Raise ValueError or OSError for a prefix that cannot be used, as far as that is known without its
        placeholders. Makes the folder where there are none.
        """
        check_prefix(prefix, self.output)
        if "%" not in prefix:
            check_folder(next(self.names(self.output, prefix, PREVIEW.extension)).parent, 0, "video")


@dataclass(frozen=True)
class VideoSettings:
    """The node's choices: names in CODECS, CROPS and SIDE_FILES, one of the three KEEP words, tile side in pixels or
    None; `details` is a text about this video, such as its prompt and seed in json. With `trim_to_audio` a video ends
    with its sound where that is shorter.
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


@dataclass(frozen=True)
class Request:
    """One call of the node: its choices, where files go, and the json (prompt, workflow) that they hold."""

    settings: VideoSettings
    folders: Folders
    metadata: Mapping
    now: datetime = field(default_factory=datetime.now)

    @property
    def texts(self) -> dict[str, str]:
        """What the files hold besides the video, by name."""
        if args.disable_metadata:
            return {}
        texts = {key: json.dumps(value) for key, value in self.metadata.items() if key.isprintable()}
        # Players show a comment, and encoders take neither halves of surrogate pairs nor a NUL.
        details = self.settings.details.encode(errors="replace").decode().replace("\0", "")
        return texts | ({"comment": details} if details else {})

    @property
    def prefix(self) -> str:
        """The prefix with what ComfyUI's page would have filled in, and within the output folder. Raises ValueError."""
        prompt, workflow = (self.metadata.get(name) for name in ("prompt", "workflow"))
        filled = fill_placeholders(self.settings.prefix, prompt, workflow, self.now)
        return safe_prefix(filled, self.folders.output)


@dataclass(frozen=True)
class Plan:
    """What is known and checked before anything is computed. Sizes in pixels; `rows` are those that the crop keeps."""

    request: Request
    codec: Codec
    fps: Fraction
    batch: int
    frames: int
    height: int
    width: int
    rows: slice
    sounds: list[Sound | None]
    side_file: str | None
    ram_limit: int

    @property
    def settings(self) -> VideoSettings:
        return self.request.settings

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.rows.stop - self.rows.start

    def names(self) -> Iterator[Path]:
        """The next free names for a video."""
        folders = self.request.folders
        return folders.names(folders.output, self.request.prefix, self.codec.extension, *self.size)

    def trimmed(self, sound: Sound | None) -> Plan:
        """The plan with the frames that are written beside this sound."""
        if sound is None or not self.settings.trim_to_audio:
            return self
        return replace(self, frames=min(self.frames, frames_heard(sound, self.fps)))

    def buffer(self) -> FrameBuffer:
        shape = (self.frames, self.height, self.width)
        return FrameBuffer(*shape, self.codec.bits, self.request.folders.temp, self.ram_limit, may_pin())


def make_plan(vae, samples: torch.Tensor, request: Request, audio: Mapping | None) -> Plan:
    """Check every choice against the latent (b, c, t, h, w), the VAE and the audio. Raises ValueError."""
    if samples.ndim != 5:
        raise ValueError(
            f"A video's latent has 5 axes (batch, channels, frames, height, width), got {tuple(samples.shape)}. "
            "Connect the latent of a video model."
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
    sounds = soundtracks(audio, codec, batch, frames / fps)
    ram_limit = int(free_ram() * RAM_SHARE)
    return Plan(request, codec, fps, batch, frames, height, width, rows, sounds, side_file, ram_limit)


def chosen(name: str, options: Mapping, value: object) -> object:
    """options[value]; ValueError where it is none of them, as may come through a link."""
    try:
        return options[value]
    except (KeyError, TypeError):
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}.") from None


def check_room(plan: Plan) -> None:
    """Raise OSError where the videos, or decoded frames that wait on disk, find too little room."""
    width, height = plan.size
    settings, folders = plan.request.settings, plan.request.folders
    needed = plan.batch * estimated_bytes(plan.codec, plan.frames, height, width, settings.crf)
    waiting = FrameBuffer.size(plan.frames, plan.height, plan.width, plan.codec.bits)
    output = next(plan.names()).parent
    if waiting <= plan.ram_limit:
        check_folder(output, needed, "video")
        return
    temp = Path(folders.temp)
    temp.mkdir(parents=True, exist_ok=True)
    if os.stat(output).st_dev == os.stat(temp).st_dev:
        check_folder(output, needed + waiting, "video, with its decoded frames in the temp folder,")
        needed = waiting = 0
    check_folder(output, needed, "video")
    check_folder(temp, waiting, "decoded video")
