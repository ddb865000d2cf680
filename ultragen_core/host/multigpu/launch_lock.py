"""One thread at a time launches work on GPUs, of all threads of a sampling run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS_BETWEEN_CHECKS = 0.5


class LaunchLock:
    """Held by the thread that launches. holder: of the lock, or None.

    PyTorch releases the interpreter's lock in every call. Threads that launch at the same time therefore wake each
    other at every call, and take several times as long as one after the other. Meanwhile the GPUs compute what was
    launched.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self.holder: Any = None

    @contextmanager
    def held(self, holder: Any, check: Callable[[], None]) -> Iterator[None]:
        """Hold the lock inside. check: called at intervals while another thread holds it; may raise."""
        self._acquire(holder, check)
        try:
            yield
        finally:
            self._release(holder)

    @contextmanager
    def released(self, holder: Any, check: Callable[[], None]) -> Iterator[None]:
        """Let others have the lock inside, where `holder` holds it. After an error it is not taken again."""
        if self.holder is not holder:
            yield
            return
        self._release(holder)
        yield
        self._acquire(holder, check)

    def _acquire(self, holder: Any, check: Callable[[], None]) -> None:
        while not self._lock.acquire(timeout=SECONDS_BETWEEN_CHECKS):
            check()
        self.holder = holder

    def _release(self, holder: Any) -> None:
        if self.holder is holder:
            self.holder = None
            self._lock.release()
