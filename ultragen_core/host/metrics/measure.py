"""Metrics of ComfyUI's videos and images: frames in a stream, networks on the device, progress, interruption."""

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
    check_length,
    check_size,
    score,
    score_video,
)
from ...video.reader import read_frames
from ..compat import trim_window
from .clip import Clip, load_clip

# The files that a metric needs.
NEEDS: Mapping[str, tuple[Backbone, ...]] = {
    HD_LPIPS: (ALEXNET, LPIPS_HEADS),
    HD_FVD: (I3D_KINETICS,),
    CLIP_SCORE: (CLIP_L,),
    CONSISTENCY: (CLIP_L,),
}
Find = Callable[[str, str], "str | None"]

# Measured on the CPU: LPIPS of a 1080P frame took 203 bytes a pixel, I3D of its eight patches at a time 0.57 GB.
_BYTES_A_PIXEL = 220
_BYTES_OF_PATCHES = 600_000_000


def check(wanted: Collection[str], find: Find, references: Sequence, prompts: Sequence[str | None]) -> None:
    """ValueError where something is missing that can be known before the first frame.

    find(folder, name): a file's path in ComfyUI's model folders, or None. references, prompts: None in them is what is
    connected and not there yet.
    """
    if not wanted:
        raise ValueError("There is nothing to measure: switch on at least one metric.")
    if HD_FVD in wanted and not references:
        raise ValueError("hd_fvd compares with other videos: connect reference, or switch it off.")
    if CLIP_SCORE in wanted and not all(prompt is None or prompt.strip() for prompt in prompts or [""]):
        raise ValueError("clip_score compares with a prompt, which is empty: write one, or switch it off.")
    for metric, files in NEEDS.items():
        missing = [file.where for file in files if metric in wanted and find(file.folder, file.name) is None]
        if missing:
            raise ValueError(f"{metric} needs files that are not there: put {' and '.join(missing)}. Or switch it off.")


def measure(
    videos: Sequence, wanted: Collection[str], find: Find, references: Sequence = (), prompts: Sequence[str] = ()
) -> Scores:
    """Scores of ComfyUI's VIDEOs and IMAGE batches (each batch one video).

    wanted: names of scores.METRICS. find: as in `check`. references: for HD-FVD. prompts: for the CLIP score, one for
    all or one for each video. ValueError, in a sentence, for what is missing or does not fit together.
    """
    check(wanted, find, references, prompts)
    if CLIP_SCORE in wanted and len(prompts) not in (1, len(videos)):
        raise ValueError(
            f"clip_score takes one prompt for all videos or one for each, got {len(prompts)} for {len(videos)}."
            " Connect the list of prompts that the videos were made from."
        )
    references = references if HD_FVD in wanted else ()
    pixels = [_check_video(f"Video {number}", video, wanted) for number, video in enumerate(videos, 1)]
    pixels += [_check_video(f"Reference {number}", video, {HD_FVD}) for number, video in enumerate(references, 1)]
    if not videos:
        raise ValueError("There is nothing to measure: the list of videos is empty. Connect at least one.")
    device = comfy.model_management.get_torch_device()
    room = _BYTES_A_PIXEL * max(pixels) + _BYTES_OF_PATCHES
    comfy.model_management.free_memory(room, device)
    networks, clip = _load(wanted, find, device)
    embedded = [clip.embed_text(prompt) for prompt in prompts] if CLIP_SCORE in wanted else [None]
    progress = _Progress([*videos, *references], device)
    scored = [
        score_video(progress.frames(f"Video {index + 1}", video), wanted, networks, embedded[index % len(embedded)])
        for index, video in enumerate(videos)
    ]
    compared = [
        score_video(progress.frames(f"Reference {index + 1}", video), {HD_FVD}, networks)
        for index, video in enumerate(references)
    ]
    return score(scored, compared)


def _load(wanted: Collection[str], find: Find, device: torch.device) -> tuple[Networks, Clip | None]:
    paths = {file: Path(find(file.folder, file.name)) for metric in wanted for file in NEEDS.get(metric, ())}
    lpips = load_lpips(paths[ALEXNET], paths[LPIPS_HEADS]).to(device) if HD_LPIPS in wanted else None
    i3d = load_i3d(paths[I3D_KINETICS]).to(device) if HD_FVD in wanted else None
    clip = load_clip(paths[CLIP_L]) if CLIP_L in paths else None
    return Networks(lpips, i3d, clip and clip.embed), clip


class _Progress:
    """Hands out the frames of all videos, on the device, and moves ComfyUI's bar with them."""

    def __init__(self, videos: Sequence, device: torch.device):
        self._device = device
        self._bar = comfy.utils.ProgressBar(sum(_count(video) for video in videos))

    def frames(self, name: str, video) -> Iterator[Tensor]:
        """Raises ComfyUI's interruption when the user asks for it."""
        for frame in _read(name, video):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield frame.to(self._device)
            self._bar.update(1)


def _read(name: str, video) -> Iterator[Tensor]:
    """The frames of `stream`, whose own errors alone are those of the file."""
    frames = stream(video)
    while True:
        with readable(name):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def stream(video) -> Iterator[Tensor]:
    """Frames (height, width, 3), float32 in 0..1, of a VIDEO or an IMAGE batch; of a file one at a time."""
    if isinstance(video, InputImpl.VideoFromFile):
        yield from read_frames(video.get_stream_source(), *trim_window(video))
    else:
        images = video if isinstance(video, Tensor) else video.get_components().images
        yield from (image[..., :3].float() for image in images)


def _count(video) -> int:
    if isinstance(video, Tensor):
        return len(video)
    # ComfyUI 0.30.0's get_frame_count says 1 for files that do not name the number, such as .mkv.
    with readable("A video"):
        return max(1, round(video.get_duration() * video.get_frame_rate()))


def _check_video(name: str, video, wanted: Collection[str]) -> int:
    """The pixels of a frame. Raises ValueError for what a wanted metric cannot take, where that is known beforehand."""
    if isinstance(video, Tensor):
        if video.ndim != 4 or video.shape[-1] < 3:
            raise ValueError(f"{name} must be images (frames, height, width, 3), got {tuple(video.shape)}.")
        check_length(name, len(video), wanted)
        unfinite = [index for index, frame in enumerate(video) if not frame.isfinite().all()]
        if unfinite:
            raise ValueError(
                f"{name} holds values that are no numbers (NaN or infinite) in {len(unfinite)} of {len(video)} frames,"
                f" the first is frame {unfinite[0]}. It was damaged before: look at the nodes that made it."
            )
        height, width = video.shape[1:3]
    elif hasattr(video, "get_dimensions"):
        with readable(name):
            width, height = video.get_dimensions()
    else:
        raise ValueError(f"{name} must be a video or images, got a value of type {type(video).__name__}.")
    check_size(name, width, height, wanted)
    return width * height


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raise what a damaged file ends in as a ValueError that names the video."""
    try:
        yield
    except (OSError, ValueError, LookupError, EOFError, ArithmeticError) as error:
        raise ValueError(f"{name} cannot be read as a video: {error}. Connect another one.") from error
