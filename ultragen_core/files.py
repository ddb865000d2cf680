"""Whole files or none: a file gets its name when it is complete."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .printable import printable

UNFINISHED = ".part"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """Yield a name in the same folder, ending in `.part`, to write to; on success it becomes `path` in one step.

    On any exception the part is removed. A killed process leaves the `.part` and never a half-written `path`.
    """
    part = path.with_name(path.name + UNFINISHED)
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def file_within(folder: Path, name: str) -> Path:
    """A file that somebody named, in `folder` or below it. Raises ValueError where it is none, or leads elsewhere."""
    path = Path(os.path.realpath(folder / name.replace("\\", "/"))) if "\0" not in name else folder
    if not os.path.isfile(path) or not path.is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{printable(name)} must be a file in {folder}. Put it there, or correct the name.")
    return path


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota has no room left. PyAV's errors carry the same numbers."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def check_folder(folder: Path, needed: int, purpose: str) -> None:
    """Raise OSError, in a sentence, where a folder cannot be written to or its disk has fewer than `needed` bytes."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"The {purpose} is written to {folder}, which cannot be written to ({error.strerror}). "
            "Give ComfyUI's user the right to write there, or start ComfyUI with another folder."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"The {purpose} needs about {needed / 1e9:.2f} GB in {folder}, its disk has {free / 1e9:.2f} GB free. "
            "Make room, or choose another codec, a higher CRF or fewer frames.",
        )
