"""Progress of a save: ComfyUI's progress bar and a status line. Every update is a point of interruption."""

from __future__ import annotations

import time
from collections.abc import Callable

import comfy.model_management
import comfy.utils

from ..vae.run import Report

DECODING, ENCODING = "decoding", "encoding"
# In order, with their shares of the bar. The browser shows the names.
PHASES = {DECODING: 0.7, ENCODING: 0.3}

_STEPS = 1000
_SECONDS_BETWEEN_TEXTS = 0.5


class SaveProgress:
    """One progress bar over all phases of all videos of a batch. on_status gets a line of text at most every 0.5 s."""

    def __init__(self, batch: int, on_status: Callable[[str], None]):
        self._batch, self._on_status = batch, on_status
        self._bar = comfy.utils.ProgressBar(_STEPS)
        self._last_status = 0.0

    def reporter(self, index: int, phase: str) -> Report:
        """Return `update(done, total)` for one phase of one video. It raises ComfyUI's interruption."""
        names = list(PHASES)
        before = sum(PHASES[name] for name in names[: names.index(phase)])
        which = f"video {index + 1} of {self._batch}, " if self._batch > 1 else ""

        def update(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            share = before + PHASES[phase] * done / total
            self._bar.update_absolute(round(_STEPS * (index + share) / self._batch))
            if done == total or time.monotonic() - self._last_status > _SECONDS_BETWEEN_TEXTS:
                self._last_status = time.monotonic()
                self._on_status(f"{which}{phase}: {100 * done // total} %")

        return update
