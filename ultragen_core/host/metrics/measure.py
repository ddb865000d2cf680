"""Measures ComfyUI's videos and images: streams frames, loads networks, reports progress, can be interrupted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ...metrics.backbones import ALEXNET, CLIP_L, I3D_KINETICS, LPIPS_HEADS, Backbone, load_i3d, load_lpips
from ...metrics.scores import (
    CLIP_SCORE,
    CONSISTENCY,
    HD_FVD,
    HD_LPIPS,
    Networks,
    Scores,
    VideoScores,
    check_length,
    check_size,
    score,
    score_video,
)
from ...video.reader import read_frames
from ..compat import frame_count, trim_window
from .clip import Clip, load_clip

# The files that each metric needs.
NEEDS: Mapping[str, tuple[Backbone, ...]] = {
    HD_LPIPS: (ALEXNET, LPIPS_HEADS),
    HD_FVD: (I3D_KINETICS,),
    CLIP_SCORE: (CLIP_L,),
    CONSISTENCY: (CLIP_L,),
}
Find = Callable[[str, str], "str | None"]

# Measured on the CPU: LPIPS takes 203 bytes per pixel of a 1080P frame, I3D 0.57 GB for a batch of eight patches.
_LPIPS_BYTES_PER_PIXEL = 220
_I3D_BYTES = 600_000_000


def check(wanted: Collection[str], find: Find, references: Sequence, prompts: Sequence[str | None]) -> None:
    """Raise ValueError for whatever is missing, before the first frame is read.

    find(folder, name): returns a file's path in ComfyUI's model folders, or None. references, prompts: None stands for
    a linked value that is not known yet.
    """
    if not wanted:
        raise ValueError("At least one metric must be on, got none. Switch one on.")
    if HD_FVD in wanted and not references:
        raise ValueError("hd_fvd needs reference videos, got none. Connect reference, or switch hd_fvd off.")
    if CLIP_SCORE in wanted and not all(prompt is None or prompt.strip() for prompt in prompts or [""]):
        raise ValueError("clip_score needs a prompt, got an empty one. Write it, or switch clip_score off.")
    for metric, files in NEEDS.items():
        missing = [file.where for file in files if metric in wanted and find(file.folder, file.name) is None]
        if missing:
            raise ValueError(
                f"{metric} needs files that are missing. Put {' and '.join(missing)}, or switch {metric} off."
            )


def measure(
    videos: Sequence, wanted: Collection[str], find: Find, references: Sequence = (), prompts: Sequence[str] = ()
) -> Scores:
    """Measure ComfyUI's VIDEOs and IMAGE batches (each batch is one video).

    wanted: names in scores.METRICS. find: as in `check`. references: for HD-FVD. prompts: for the CLIP score, one for
    all videos or one for each. Raises ValueError for missing or inconsistent inputs.
    """
    check(wanted, find, references, prompts)
    if CLIP_SCORE in wanted and len(prompts) not in (1, len(videos)):
        raise ValueError(
            f"clip_score needs one prompt for all videos or one for each, got {len(prompts)} for {len(videos)} videos."
            " Connect the list of prompts that the videos were made from."
        )
    references = references if HD_FVD in wanted else ()
    videos, references = ([_images_or_video(video) for video in group] for group in (videos, references))
    pixels = [_check_video(f"Video {number}", video, wanted) for number, video in enumerate(videos, 1)]
    pixels += [_check_video(f"Reference {number}", video, {HD_FVD}) for number, video in enumerate(references, 1)]
    if not videos:
        raise ValueError("video must hold at least one video, got an empty list. Connect one.")
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(_LPIPS_BYTES_PER_PIXEL * max(pixels) + _I3D_BYTES, device)
    networks, clip = _load(wanted, find, device)
    embedded = [clip.embed_text(prompt) for prompt in prompts] if CLIP_SCORE in wanted else [None]
    progress = _Progress([*videos, *references], device)

    def scores_of(name: str, video, metrics: Collection[str], prompt: Tensor | None = None) -> VideoScores:
        return score_video(progress.frames(name, video), metrics, networks, prompt, name)

    scored = [
        scores_of(f"Video {index + 1}", video, wanted, embedded[index % len(embedded)])
        for index, video in enumerate(videos)
    ]
    compared = [scores_of(f"Reference {number}", video, {HD_FVD}) for number, video in enumerate(references, 1)]
    return score(scored, compared)


def _load(wanted: Collection[str], find: Find, device: torch.device) -> tuple[Networks, Clip | None]:
    paths = {file: Path(find(file.folder, file.name)) for metric in wanted for file in NEEDS.get(metric, ())}
    lpips = load_lpips(paths[ALEXNET], paths[LPIPS_HEADS]).to(device) if HD_LPIPS in wanted else None
    i3d = load_i3d(paths[I3D_KINETICS]).to(device) if HD_FVD in wanted else None
    clip = load_clip(paths[CLIP_L]) if CLIP_L in paths else None
    return Networks(lpips, i3d, clip and clip.embed), clip


class _Progress:
    """Yields frames of all videos on the device and advances ComfyUI's progress bar."""

    def __init__(self, videos: Sequence, device: torch.device):
        self._device = device
        self._bar = comfy.utils.ProgressBar(sum(_count(video) for video in videos))

    def frames(self, name: str, video) -> Iterator[Tensor]:
        """Yield the frames of one video. Raises ComfyUI's interruption."""
        for frame in _read(name, video):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield frame.to(self._device)
            self._bar.update(1)


def _read(name: str, video) -> Iterator[Tensor]:
    """Yield the frames of `stream`. Only errors raised there are reported as an unreadable file."""
    frames = stream(video)
    while True:
        with readable(name):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def stream(video) -> Iterator[Tensor]:
    """Yield frames (height, width, 3), float32 in 0..1, of a VIDEO or an IMAGE batch; a file is read frame by frame."""
    if isinstance(video, InputImpl.VideoFromFile):
        yield from read_frames(video.get_stream_source(), *trim_window(video))
    else:
        images = video if isinstance(video, Tensor) else video.get_components().images
        yield from (image[..., :3].float() for image in images)


def _images_or_video(video):
    """Return the IMAGE batch that a VIDEO in memory was made from, so that it is checked like one; else `video`."""
    return video.get_components().images if isinstance(video, InputImpl.VideoFromComponents) else video


def _count(video) -> int:
    if isinstance(video, Tensor):
        return len(video)
    with readable("A video"):
        return frame_count(video)


def _check_video(name: str, video, wanted: Collection[str]) -> int:
    """Return the pixels per frame. Raises ValueError for a video that a wanted metric cannot take."""
    if isinstance(video, Tensor):
        if video.ndim != 4 or video.shape[-1] < 3:
            shape = tuple(video.shape)
            raise ValueError(f"{name} must be images (frames, height, width, 3), got {shape}. Connect an IMAGE.")
        check_length(name, len(video), wanted)
        unfinite = [index for index, frame in enumerate(video) if not frame.isfinite().all()]
        if unfinite:
            raise ValueError(
                f"{name} must be finite: {len(unfinite)} of {len(video)} frames hold NaN or infinite values; the first"
                f" is frame {unfinite[0]}. Check the nodes that made it."
            )
        height, width = video.shape[1:3]
    elif hasattr(video, "get_dimensions"):
        with readable(name):
            width, height = video.get_dimensions()
    else:
        raise ValueError(f"{name} must be a video or images, got a value of type {type(video).__name__}. Connect one.")
    check_size(name, width, height, wanted)
    return width * height


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Convert the errors of reading a damaged file into a ValueError that names the video."""
    try:
        yield
    except (OSError, ValueError, LookupError, EOFError, ArithmeticError) as error:
        raise ValueError(f"{name} cannot be read as a video: {error}. Connect another one.") from error
