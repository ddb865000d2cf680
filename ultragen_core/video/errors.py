"""FFmpeg's errors as OSErrors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import av


@contextmanager
def as_os_errors(doing: str) -> Iterator[None]:
    """Convert FFmpeg's errors, many of which are plain Exceptions, into OSErrors: "FFmpeg could not `doing`: reason".

    Errors of the operating system, such as a full disk, are OSErrors with an errno already and pass unchanged.
    """
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise OSError(f"FFmpeg could not {doing}: {error.strerror}.") from error
