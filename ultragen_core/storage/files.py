"""Whole files or none: a file gets its name when it is complete."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..printable import printable

UNFINISHED = ".part"
# Names that Windows gives to devices, with any ending.
WINDOWS_DEVICE = re.compile(
    r"(CON|PRN|AUX|NUL|CLOCK\$|CONIN\$|CONOUT\$|COM[0-9¹²³]|LPT[0-9¹²³]) *(\.|$)", re.IGNORECASE
)

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Virus scanners and network folders hold a new file for a moment. Seconds between attempts.
_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.5, 2.0)

log = logging.getLogger(__name__)


class NotPublished(OSError):
    """A complete file that could not be given its name. It stays under the name that the message gives."""


class NewFile:
    """A file being written. Write to `part`; `path` is the name it will have, final once the context has ended."""

    def __init__(self, path: Path):
        self.path = path
        self.part = part_of(path)


def part_of(path: Path) -> Path:
    """Name the file that holds the place of `path` until it is complete."""
    return path.with_name(path.name + UNFINISHED)


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """Yield a name in the same folder to write to; on success that file replaces `path` in one step.

    The name ends in `.part`, begins like `path`, and no other process has it. On any exception the part is removed; a
    killed process leaves it. Either way what `path` held before stays.
    """
    part = path.with_name(f"{path.name[:80]}.{secrets.token_hex(4)}{UNFINISHED}")  # 80 letters of 3 bytes fit
    try:
        yield part
        _patiently(lambda: _sync(part))
        _patiently(lambda: os.replace(part, path))
    except BaseException:
        _remove(part)
        raise


def file_within(folder: Path, name: str) -> Path:
    """Find a file by a name that leads into `folder`, where links work as for ComfyUI's own nodes.

    Raises ValueError where there is none, and for a name that leads elsewhere.
    """
    path = Path(os.path.normpath(folder / name.replace("\\", "/"))) if "\0" not in name else folder
    if not os.path.isfile(path) or not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"{printable(name)} must be a file in {folder}. Put it there, or correct the name.")
    return path


@contextmanager
def new_file(names: Iterable[Path]) -> Iterator[NewFile]:
    """Take the first free one of `names`, exclusively among processes, and publish the file there on success.

    Nothing that exists is ever replaced: if another program has taken the name meanwhile, the next free one is used.
    On any exception the part is removed; a killed process leaves it, and nobody takes its name again. Raises OSError
    where no name can be taken, NotPublished where the finished file cannot be renamed for some seconds.
    """
    names = iter(names)
    file = _claim(names)
    try:
        yield file
    except BaseException:
        _remove(file.part)
        raise
    try:
        _patiently(lambda: _sync(file.part))
        _publish(file, names)
    except OSError as error:
        if is_full(error):  # what the disk had promised to take may be missing from the file
            _remove(file.part)
            raise
        raise NotPublished(
            f"The finished file could not be named {file.path.name} ({error.strerror or error}). It is complete:"
            f" {file.part}. Rename it."
        ) from error


def _claim(names: Iterator[Path]) -> NewFile:
    path = None
    for path in names:
        file = NewFile(path)
        try:
            os.close(os.open(file.part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:  # another process writes it, or was killed while it did
            continue
        except OSError as error:
            raise OSError(
                f"{path.name} cannot be written in {path.parent} ({error.strerror}). Choose another, shorter name, or "
                "give ComfyUI's user the right to write there."
            ) from error
        if not os.path.lexists(path):
            return file
        _remove(file.part)
    raise FileExistsError(f"{path} exists already and is not replaced.")


def _publish(file: NewFile, names: Iterator[Path]) -> None:
    while True:
        try:
            _patiently(lambda: _rename_to_new(file.part, file.path))
            return
        except FileExistsError:
            taken = file.path
            free = (path for path in names if not os.path.lexists(part_of(path)))
            file.path = next(free, None) or taken
            if file.path == taken:
                raise
            log.warning("UltraGen: %s was taken by another program meanwhile, using %s.", taken, file.path.name)


def _rename_to_new(part: Path, path: Path) -> None:
    """Rename a file; FileExistsError where the name is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        if not os.path.samefile(part, path):  # else the network folder answered an earlier attempt with an error
            raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(part, path)
    _remove(part)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _NO_FSYNC:
                raise


def _patiently(action: Callable[[], None]) -> None:
    for pause in _PAUSES:
        try:
            return action()
        except FileExistsError:
            raise
        except OSError as error:
            if is_full(error):
                raise
            time.sleep(pause)
    return action()


def _remove(part: Path) -> None:
    with suppress(OSError):
        part.unlink()


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota has no room left. PyAV's errors carry the same numbers."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def check_folder(folder: Path, needed: int, purpose: str) -> None:
    """Raise OSError, in a sentence, where a folder cannot be written to or its disk has fewer than `needed` bytes.

    Network mounts may report no free bytes or none at all: unknown, and no error.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"The {purpose} is written to {folder}, which cannot be written to ({error.strerror}). "
            "Give ComfyUI's user the right to write there, or start ComfyUI with another folder."
        ) from error
    free = 0
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
    if 0 < free < needed:
        raise OSError(
            f"The {purpose} needs about {needed / 1e9:.2f} GB in {folder}, its disk has {free / 1e9:.2f} GB free. "
            "Make room, or choose another codec, a higher CRF or fewer frames."
        )
