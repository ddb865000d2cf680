"""From a latent to video files: keep the latent, check the request, decode in tiles, encode frame by frame."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import comfy.model_management
import torch

from ...storage.files import NewFile, is_full, new_file
from ...video.audio import AudioClip
from ...video.encoder import VideoWriter
from ...video.latents import count_not_finite
from ..vae.exact import stream_decode
from ..vae.run import Report
from ..vae.support import fallback_reason
from .latent import KeptLatent, video_of
from .preview import Preview
from .progress import DECODING, ENCODING, SaveProgress
from .request import CheckedRequest, Folders, Request, VideoSettings, check_disk_space, check_request

log = logging.getLogger(__name__)


@dataclass
class SavedVideos:
    """The files of one save.

    videos: one for each video of the batch. previews: files that a browser can play. latent: the kept latent, or None.
    notes: warnings that did not stop the save. fallback_reason: why ComfyUI's own decode ran instead of exact tiles,
    or "".
    """

    videos: list[Path] = field(default_factory=list)
    previews: list[Path] = field(default_factory=list)
    side_files: list[Path] = field(default_factory=list)
    latent: Path | None = None
    notes: list[str] = field(default_factory=list)
    fallback_reason: str = ""

    def note(self, text: str) -> None:
        log.warning("UltraGen: %s", text)
        self.notes.append(text)


def save_video(
    vae,
    latent: Mapping,
    settings: VideoSettings,
    folders: Folders,
    metadata: Mapping,
    audio: Mapping | None = None,
    on_status: Callable[[str], None] = lambda text: None,
) -> SavedVideos:
    """Decode and encode every video of `latent["samples"]` (b, c, t, h, w), one at a time.

    metadata: prompt and workflow, embedded as JSON unless ComfyUI runs with --disable-metadata. audio: ComfyUI's AUDIO;
    the n-th video gets the n-th waveform, or the last one. on_status: receives progress texts.

    The latent is kept first. No existing file is replaced. An interruption leaves the latent and no unfinished video.

    Raises ValueError or OSError before the decode for a request that cannot succeed, and RuntimeError for a failure
    after that. Both messages say where the latent is.
    """
    samples = _checked(video_of(latent["samples"]))
    request = Request(settings, folders, metadata)
    saved = SavedVideos()
    kept = KeptLatent.write(vae, samples, request)
    if kept.failure:
        saved.note(kept.failure)
    broken = _note_broken(samples, saved)
    with _failures(saved, folders, kept):
        try:
            checked = check_request(vae, samples, request, audio)
            check_disk_space(checked)
        except (ValueError, OSError) as error:
            raise _Refused from error
        progress = SaveProgress(checked.batch, on_status)
        for index in range(checked.batch):
            reports = progress.reporter(index, DECODING), progress.reporter(index, ENCODING)
            broken |= _save_one(vae, samples[index : index + 1], checked, checked.audio[index], saved, *reports)
    saved.fallback_reason = fallback_reason(vae)
    saved.latent = kept.path if broken else kept.delete_if_temporary()
    return saved


def _note_broken(samples: torch.Tensor, saved: SavedVideos) -> bool:
    count = count_not_finite(samples)
    if count:
        saved.note(
            f"{count} of the latent's {samples.numel()} values are NaN or infinite. The sampling failed, and the video"
            " is black or broken there."
        )
    return count > 0


class _Refused(Exception):
    """Wraps an error raised before anything was computed."""


def _checked(samples: torch.Tensor) -> torch.Tensor:
    if not isinstance(samples, torch.Tensor) or 0 in samples.shape:
        shape = tuple(getattr(samples, "shape", ()))
        raise ValueError(
            f"A video's latent must hold at least one frame, got {shape or type(samples).__name__}. Connect the latent"
            " of a video model."
        )
    return samples


@contextmanager
def _failures(saved: SavedVideos, folders: Folders, kept: KeptLatent) -> Iterator[None]:
    """Add to every error where the latent is and which videos of the batch are saved."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:
        cause, kind = error, RuntimeError
        if isinstance(error, _Refused):
            cause = error.__cause__
            kind = ValueError if isinstance(cause, ValueError) else OSError
        lines = [_reason(cause, folders), kept.location(), *(f"Already saved: {path}" for path in saved.videos)]
        raise kind("\n".join(line for line in lines if line)) from cause


def _reason(error: BaseException, folders: Folders) -> str:
    if is_full(error):
        return f"The disk of {folders.output} or {folders.temp} is full. Free some space and save again."
    return str(error) or f"{type(error).__name__}, without a message. ComfyUI's log has the traceback."


def _save_one(
    vae,
    samples: torch.Tensor,
    checked: CheckedRequest,
    clip: AudioClip | None,
    saved: SavedVideos,
    decoding: Report,
    encoding: Report,
) -> bool:
    """Save one video and add it to `saved`, with a file that browsers play: itself, or a preview.

    Returns whether decoded frames hold NaN or infinite values.
    """
    with new_file(checked.make_names()) as file, checked.buffer() as buffer:

        def write(region, pixels):
            buffer.write(region.frames, region.rows, region.columns, pixels)

        stream_decode(vae, samples, write, checked.settings.tile, decoding, checked.settings.gpus)
        broken = buffer.not_finite
        if broken:
            saved.note(
                f"{broken} of {checked.frames} decoded frames of {file.path.name} hold NaN or infinite values and are"
                " black there. If the latent is finite, the VAE overflows: start ComfyUI with --fp32-vae and save the"
                " kept latent again."
            )
        checked = checked.trimmed(clip)
        preview = _encode(islice(buffer, checked.frames), checked, file, clip, saved, encoding)
    saved.videos.append(file.path)
    if preview is None and checked.codec.plays_in_browsers:
        preview = file.path
    if preview is not None:
        saved.previews.append(preview)
    if checked.side_file:
        _write_side_file(file.path, checked, saved)
    return broken > 0


def _encode(
    frames: Iterator, checked: CheckedRequest, file: NewFile, clip: AudioClip | None, saved: SavedVideos, report: Report
) -> Path | None:
    """Write the video to file.part. Return the preview's path, if there is one."""
    texts, crf = checked.request.texts, checked.settings.crf
    still_wanted = comfy.model_management.throw_exception_if_processing_interrupted
    previewed = nullcontext() if checked.codec.plays_in_browsers else Preview(checked, clip)
    video = VideoWriter(file.part, checked.codec, checked.size, checked.fps, crf, checked.frames, clip, texts)
    with video, previewed as preview:
        writers = [video] if preview is None else [video, preview]
        for number, frame in enumerate(frames):
            for writer in writers:
                writer.write(frame[checked.rows])
            report(number + 1, checked.frames)
        for writer in writers:
            writer.finish(still_wanted)
    if preview is None:
        return None
    if preview.failure:
        saved.notes.append(preview.failure)
    return preview.path


def _write_side_file(video: Path, checked: CheckedRequest, saved: SavedVideos) -> None:
    """Write the video's details next to it, as NAME_00001_.json. A failure only adds a note."""
    settings = checked.settings
    try:
        details = json.loads(settings.details)
    except ValueError:
        details = settings.details
    (width, height), frames = checked.size, checked.frames
    facts = {"file": video.name, "width": width, "height": height, "frames": frames, "fps": float(checked.fps)}
    facts |= {"codec": settings.codec, "crf": settings.crf, "details": details}
    try:
        with new_file([video.with_suffix(checked.side_file)]) as file:
            file.part.write_text(json.dumps(facts, indent=2), encoding="utf-8")
        saved.side_files.append(file.path)
    except OSError as error:
        saved.note(f"The side file of {video.name} could not be written ({error}). The video is not affected.")
