"""What a save goes through, shown in ComfyUI's progress bar and as a line of text; interruptible at every step."""

from __future__ import annotations

import time
from collections.abc import Callable

import comfy.model_management
import comfy.utils

DECODING, ENCODING = "decoding", "encoding"
# In order, with the share of the bar that each takes. The browser shows these words.
PHASES = {DECODING: 0.7, ENCODING: 0.3}

_STEPS = 1000
_SECONDS_BETWEEN_TEXTS = 0.5

Report = Callable[[int, int], None]


class SaveProgress:
    """One bar over the phases of every video of a batch; `say` gets a line of text a few times a second at most."""

    def __init__(self, batch: int, say: Callable[[str], None]):
        self._batch, self._say = batch, say
        self._bar = comfy.utils.ProgressBar(_STEPS)
        self._said_at = 0.0

    def of(self, index: int, phase: str) -> Report:
        """`report(done, total)` for one phase of one video. Raises ComfyUI's interruption when the user asks for it."""
        names = list(PHASES)
        before = sum(PHASES[name] for name in names[: names.index(phase)])
        which = f"video {index + 1} of {self._batch}, " if self._batch > 1 else ""

        def report(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            share = before + PHASES[phase] * done / total
            self._bar.update_absolute(round(_STEPS * (index + share) / self._batch))
            if done == total or time.monotonic() - self._said_at > _SECONDS_BETWEEN_TEXTS:
                self._said_at = time.monotonic()
                self._say(f"{which}{phase}: {100 * done // total} %")

        return report
