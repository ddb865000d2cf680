"""A small H.264 preview in the temp folder, for codecs that browsers cannot play."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import comfy.model_management
import numpy as np

from ...storage.files import is_full, new_file
from ...video.audio import AudioClip
from ...video.codecs import PREVIEW
from ...video.encoder import VideoWriter
from .request import CheckedRequest

_SIDE = 1280
_CRF = 23

log = logging.getLogger(__name__)


class Preview:
    """Writes the preview alongside the video; a context manager.

    An error here drops the preview, sets `failure`, and does not stop the video. path: the finished file, else None.
    """

    def __init__(self, checked: CheckedRequest, clip: AudioClip | None):
        self.path: Path | None = None
        self.failure = ""
        self._checked, self._clip = checked, clip
        self._stack = ExitStack()

    def __enter__(self) -> Preview:
        self._attempt(self._open)
        return self

    def _open(self) -> None:
        checked, folders = self._checked, self._checked.request.folders
        Path(folders.temp).mkdir(parents=True, exist_ok=True)
        self._file = self._stack.enter_context(new_file(folders.make_names(folders.temp, "ultragen/preview", "mp4")))
        size, texts = preview_size(*checked.size), checked.request.texts
        writer = VideoWriter(self._file.part, PREVIEW, size, checked.fps, _CRF, checked.frames, self._clip, texts)
        self._writer = self._stack.enter_context(writer)

    def write(self, rgb: np.ndarray) -> None:
        self._attempt(lambda: self._writer.write(rgb))

    def finish(self, still_wanted: Callable[[], None]) -> None:
        self._attempt(lambda: self._finish(still_wanted))

    def _finish(self, still_wanted: Callable[[], None]) -> None:
        self._writer.finish(still_wanted)
        self._stack.close()
        self.path = self._file.path

    def _attempt(self, action: Callable[[], None]) -> None:
        if self.failure:
            return
        try:
            action()
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:
            reason = f"the disk of {self._checked.request.folders.temp} is full" if is_full(error) else error
            self.failure = f"The preview could not be written ({reason}). The video is not affected."
            log.warning("UltraGen: %s", self.failure)
            self._stack.__exit__(type(error), error, error.__traceback__)

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)


def preview_size(width: int, height: int) -> tuple[int, int]:
    """Scale (width, height) down to at most 1280 pixels a side, both even."""
    scale = min(1.0, _SIDE / max(width, height))
    return max(16, round(width * scale / 2) * 2), max(16, round(height * scale / 2) * 2)
