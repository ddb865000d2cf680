"""A dataset in the layout of UltraGen's authors, cut into clips: `videos/` and `captions.json` {file name: caption}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.console import Trouble
from ultragen_core.sizes import VideoSize
from ultragen_core.video.reader import read_frames

VIDEOS = "videos"


def captions(folder: Path) -> dict[Path, str]:
    """Return {video file: caption}, sorted by name. Raises Trouble if the json is broken or a video is missing."""
    path = folder / "captions.json"
    try:
        texts = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(texts, dict) or not all(isinstance(caption, str) for caption in texts.values()):
            raise ValueError("every name of a video needs one text")
    except (OSError, ValueError) as error:
        raise Trouble(f'{path} must be json such as {{"video001.mp4": "a caption"}}: {error}.') from None
    files = {folder / VIDEOS / name: caption for name, caption in sorted(texts.items())}
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise Trouble(
            f"Every video of captions.json must be in {folder / VIDEOS}, missing: {', '.join(missing[:5]) or 'all'}"
            f" ({len(missing)} of {len(files)}). Put them there, or remove them from the json."
        )
    return files


def clips(file: Path, size: VideoSize, stride: int) -> Iterator[Tensor]:
    """Yield consecutive clips (frames, height, width, 3) of a video, values in 0..1, from every `stride`-th frame.

    Frames are scaled to cover `size` and cropped around their centre. Frames after the last whole clip are dropped.
    """
    frames = islice(_frames(file), 0, None, stride)
    while len(clip := [_covering(frame, size) for frame in islice(frames, size.frames)]) == size.frames:
        yield torch.stack(clip)


def _frames(file: Path) -> Iterator[Tensor]:
    try:
        yield from read_frames(str(file))
    except (OSError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise Trouble(f"{file} cannot be read: {reason}. Replace it, or remove it from captions.json.") from None


def _covering(frame: Tensor, size: VideoSize) -> Tensor:
    scale = max(size.height / frame.shape[0], size.width / frame.shape[1])
    target = [max(round(side * scale), wanted) for side, wanted in zip(frame.shape, (size.height, size.width))]  # noqa: B905
    if scale != 1:
        x = frame.movedim(-1, 0)[None]
        frame = F.interpolate(x, target, mode="bicubic", antialias=True)[0].movedim(0, -1).clamp(0, 1)
    top, left = (frame.shape[0] - size.height) // 2, (frame.shape[1] - size.width) // 2
    return frame[top : top + size.height, left : left + size.width]
