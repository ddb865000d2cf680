"""What fails in FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import av


@contextmanager
def as_os_errors(doing: str) -> Iterator[None]:
    """Raise FFmpeg's own errors, of which many are plain Exceptions, as OSErrors: FFmpeg could not `doing`, and why.

    What the operating system reports, such as a full disk, is an OSError with its number already.
    """
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise OSError(f"FFmpeg could not {doing}: {error.strerror}.") from error
