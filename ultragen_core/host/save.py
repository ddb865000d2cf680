"""From a latent to a video file: check everything, keep the latent, decode in tiles, encode frame by frame."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import comfy.model_management
import torch
from comfy.cli_args import args

from ..files import check_folder, finished_file, is_full
from ..video.audio import Sound, soundtracks
from ..video.codecs import (
    CODECS,
    CROPS,
    PREVIEW,
    Codec,
    check_encoders,
    check_frame_size,
    check_quality,
    cropped_rows,
    estimated_bytes,
    frame_rate,
)
from ..video.encoder import VideoWriter
from ..video.frames import FrameBuffer
from ..video.latents import SUFFIX, save_latent
from .save_progress import DECODING, ENCODING, Report, SaveProgress
from .vae import decoded_shape, may_pin, refusal, stream_decode

KEEP, KEEP_UNTIL_SAVED, KEEP_NOT = "keep", "until the video is saved", "off"
NAMELESS = "ultragen"  # ComfyUI's own name for nothing begins with a dot, which hides the file

_PREVIEW_SIDE = 1280
_PREVIEW_CRF = 23
# Frames that would take more than this share of the free RAM wait on disk.
_RAM_SHARE = 0.5


@dataclass(frozen=True)
class Folders:
    """ComfyUI's output and temp folder, and its `get_save_image_path`, which numbers names and confines them."""

    output: str
    temp: str
    name: Callable[[str, str, int, int], tuple[str, str, int, str, str]]

    def place(self, folder: str, prefix: str, extension: str, width: int = 0, height: int = 0) -> Path:
        try:
            path, name, counter, _, _ = self.name(prefix, folder, width, height)
        except OSError as error:
            raise OSError(
                f"The folder of {prefix} cannot be made in {folder} ({error.strerror}). Give ComfyUI's user the right"
                " to write there, or start ComfyUI with another folder."
            ) from error
        return Path(path) / f"{name}_{counter:05}_.{extension}"


@dataclass(frozen=True)
class VideoSettings:
    """The node's choices: names in CODECS and CROPS, one of the three KEEP words, tile side in pixels or None."""

    prefix: str
    fps: float
    codec: str
    crf: int
    crop: str = "keep"
    keep_latent: str = KEEP
    tile: int | None = None


@dataclass(frozen=True)
class SavedVideos:
    """One file for each video of the batch, what a browser can play of each, and the latent's file if it was kept.

    `refusal` says why the VAE was left to core's own decode; usually it is empty.
    """

    videos: list[Path]
    previews: list[Path]
    latent: Path | None
    refusal: str


@dataclass(frozen=True)
class _Plan:
    """What is known and checked before anything is computed. Sizes in pixels; `rows` are those that the crop keeps."""

    settings: VideoSettings
    folders: Folders
    texts: Mapping[str, str]
    codec: Codec
    fps: Fraction
    batch: int
    frames: int
    height: int
    width: int
    rows: slice
    ram_limit: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.rows.stop - self.rows.start

    def place(self) -> Path:
        """The next free name for a video."""
        prefix = self.settings.prefix or NAMELESS
        return self.folders.place(self.folders.output, prefix, self.codec.extension, *self.size)

    def buffer(self) -> FrameBuffer:
        shape = (self.frames, self.height, self.width)
        return FrameBuffer(*shape, self.codec.bits, self.folders.temp, self.ram_limit, may_pin())


def save_video(
    vae,
    latent: Mapping,
    settings: VideoSettings,
    folders: Folders,
    metadata: Mapping,
    audio: Mapping | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> SavedVideos:
    """Decode and encode every video of `latent["samples"]` (b, c, t, h, w); never more than one of them in memory.

    `metadata` (prompt, workflow) goes into the files as json, unless ComfyUI runs with --disable-metadata. `audio` is
    ComfyUI's AUDIO: its n-th waveform, or its last, goes with the n-th video. `say` is told what is being done.

    Raises ValueError or OSError before decoding where something is known to be impossible, and RuntimeError naming the
    kept latent where something fails later. Interrupted, it leaves the latent and no unfinished video.
    """
    samples = latent["samples"]
    texts = {} if args.disable_metadata else {key: json.dumps(value) for key, value in metadata.items()}
    plan = _plan(vae, samples, settings, folders, texts, audio)
    sounds = soundtracks(audio, plan.codec, plan.batch, plan.frames / plan.fps)
    _check_room(plan, samples)
    progress = SaveProgress(plan.batch, say)
    saved = []
    with _latent_kept(samples, plan) as kept:
        for index in range(plan.batch):
            reports = progress.of(index, DECODING), progress.of(index, ENCODING)
            saved.append(_save_one(vae, samples[index : index + 1], plan, sounds[index], *reports))
    videos, previews = (list(paths) for paths in zip(*saved, strict=True))
    return SavedVideos(videos, previews, kept if settings.keep_latent == KEEP else None, refusal(vae))


def _plan(
    vae, samples: torch.Tensor, settings: VideoSettings, folders: Folders, texts: Mapping, audio: Mapping | None
) -> _Plan:
    if samples.ndim != 5:
        raise ValueError(
            f"A video's latent has 5 axes (batch, channels, frames, height, width), got {tuple(samples.shape)}. "
            "Connect the latent of a video model."
        )
    codec = CODECS[settings.codec]
    check_encoders(codec, audio is not None)
    check_quality(settings.crf)
    batch, frames, height, width = decoded_shape(vae, tuple(samples.shape))
    rows = cropped_rows(height, CROPS[settings.crop])
    check_frame_size(codec, width, rows.stop - rows.start)
    fps = frame_rate(settings.fps)
    ram_limit = int(comfy.model_management.get_free_memory(torch.device("cpu")) * _RAM_SHARE)
    return _Plan(settings, folders, texts, codec, fps, batch, frames, height, width, rows, ram_limit)


def _check_room(plan: _Plan, samples: torch.Tensor) -> None:
    width, height = plan.size
    needed = plan.batch * estimated_bytes(plan.codec, plan.frames, height, width, plan.settings.crf)
    if plan.settings.keep_latent != KEEP_NOT:
        needed += samples.nbytes
    check_folder(plan.place().parent, needed, "video")
    waiting = FrameBuffer.size(plan.frames, plan.height, plan.width, plan.codec.bits)
    Path(plan.folders.temp).mkdir(parents=True, exist_ok=True)
    check_folder(Path(plan.folders.temp), waiting if waiting > plan.ram_limit else 0, "decoded video")


@contextmanager
def _latent_kept(samples: torch.Tensor, plan: _Plan) -> Iterator[Path | None]:
    """Save the latent before anything can fail, in output/latents, named as the video; say where it is if it did."""
    kept = None
    try:
        if plan.settings.keep_latent != KEEP_NOT:
            unnumbered = os.path.relpath(plan.place(), plan.folders.output).rsplit("_", 2)[0]
            place = plan.folders.place(plan.folders.output, f"latents/{unnumbered}", SUFFIX.removeprefix("."))
            save_latent(place, samples, plan.texts)
            kept = place
            logging.info("The latent is kept in %s.", kept)
        yield kept
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:
        raise RuntimeError(_what_failed(error, plan.folders, kept)) from error
    if plan.settings.keep_latent == KEEP_UNTIL_SAVED:
        kept.unlink()


def _what_failed(error: Exception, folders: Folders, kept: Path | None) -> str:
    reason = f"The disk of {folders.output} or {folders.temp} is full. Make room." if is_full(error) else str(error)
    return reason if kept is None else f"{reason}\nThe latent is kept in {kept}: UltraGen Load Latent brings it back."


def _save_one(
    vae, samples: torch.Tensor, plan: _Plan, sound: Sound | None, decoding: Report, encoding: Report
) -> tuple[Path, Path]:
    """The file of one video, and one that browsers play: the same, or a small one in the temp folder."""
    path = plan.place()
    preview = path if plan.codec.plays_in_browsers else plan.folders.place(plan.folders.temp, "ultragen/preview", "mp4")
    with plan.buffer() as buffer:

        def write(region, pixels):
            buffer.write(region.frames, region.rows, region.columns, pixels)

        stream_decode(vae, samples, write, plan.settings.tile, decoding)
        _encode(buffer, plan, path, preview, sound, encoding)
    return path, preview


def _encode(buffer: FrameBuffer, plan: _Plan, path: Path, preview: Path, sound: Sound | None, report: Report) -> None:
    with finished_file(path) as part, ExitStack() as stack:
        crf = plan.settings.crf
        writers = [VideoWriter(part, plan.codec, plan.size, plan.fps, crf, plan.frames, sound, plan.texts)]
        stack.enter_context(writers[0])
        if preview != path:
            size = _preview_size(*plan.size)
            writers.append(VideoWriter(preview, PREVIEW, size, plan.fps, _PREVIEW_CRF, plan.frames, sound, plan.texts))
            stack.enter_context(writers[1])
        for number, frame in enumerate(buffer):
            for writer in writers:
                writer.write(frame[plan.rows])
            report(number + 1, plan.frames)
        for writer in writers:
            writer.finish(comfy.model_management.throw_exception_if_processing_interrupted)


def _preview_size(width: int, height: int) -> tuple[int, int]:
    """Even sides, the longer one of 1280 pixels at most."""
    scale = min(1.0, _PREVIEW_SIDE / max(width, height))
    return max(16, round(width * scale / 2) * 2), max(16, round(height * scale / 2) * 2)
