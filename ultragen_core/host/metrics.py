"""Metrics of ComfyUI's videos and images: frames in a stream, networks on the device, progress, interruption."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ..metrics.scores import CLIP_SCORE, CONSISTENCY, HD_FVD, HD_LPIPS, Networks, Scores, score, score_video
from ..video.reader import read_frames
from ..weights.backbones import ALEXNET, CLIP_L, I3D_KINETICS, LPIPS_HEADS, Backbone, load_i3d, load_lpips
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
    device = comfy.model_management.get_torch_device()
    room = _BYTES_A_PIXEL * max(map(_pixels, [*videos, *references])) + _BYTES_OF_PATCHES
    comfy.model_management.free_memory(room, device)
    networks, clip = _load(wanted, find, device)
    embedded = [clip.embed_text(prompt) for prompt in prompts] if CLIP_SCORE in wanted else [None]
    progress = _Progress([*videos, *references], device)
    scored = [
        score_video(progress.frames(video), wanted, networks, embedded[index % len(embedded)])
        for index, video in enumerate(videos)
    ]
    return score(scored, [score_video(progress.frames(video), {HD_FVD}, networks) for video in references])


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

    def frames(self, video) -> Iterator[Tensor]:
        """Raises ComfyUI's interruption when the user asks for it."""
        for frame in stream(video):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield frame.to(self._device)
            self._bar.update(1)


def stream(video) -> Iterator[Tensor]:
    """Frames (height, width, 3), float32 in 0..1, of a VIDEO or an IMAGE batch; of a file one at a time."""
    if isinstance(video, InputImpl.VideoFromFile):
        # 0.3.75 cuts no files.
        window = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
        yield from read_frames(video.get_stream_source(), *window)
    else:
        images = video if isinstance(video, Tensor) else video.get_components().images
        yield from (image[..., :3].float() for image in images)


def _count(video) -> int:
    if isinstance(video, Tensor):
        return len(video)
    # ComfyUI 0.30.0's get_frame_count says 1 for files that do not name the number, such as .mkv.
    return max(1, round(video.get_duration() * video.get_frame_rate()))


def _pixels(video) -> int:
    width, height = (video.shape[2], video.shape[1]) if isinstance(video, Tensor) else video.get_dimensions()
    return width * height
