"""Waiting for what other threads and processes do, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

SECONDS = 120  # a bound for failures alone: what is waited for takes a moment

T = TypeVar("T")


def wait_until(happens: Callable[[], T], seconds: float = SECONDS) -> T:
    """Return the first result of `happens()` that is true. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := happens()):
        assert time.monotonic() < end, f"did not happen in {seconds} s"
        time.sleep(0.02)
    return result


def ended(pid: int) -> bool:
    """Whether a process has ended, as Linux tells; also if its parent has not taken notice yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
