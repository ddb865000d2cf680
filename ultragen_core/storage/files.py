"""Atomic writes: a file gets its name when it is complete. And checks of files and folders that users name."""

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
# Names that Windows reserves for devices, with any ending.
WINDOWS_DEVICE = re.compile(
    r"(CON|PRN|AUX|NUL|CLOCK\$|CONIN\$|CONOUT\$|COM[0-9¹²³]|LPT[0-9¹²³]) *(\.|$)", re.IGNORECASE
)

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Virus scanners and network folders lock a new file for a moment. Seconds between attempts.
_RETRY_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.5, 2.0)

log = logging.getLogger(__name__)


class NotPublished(OSError):
    """A complete file could not get its name; it stays under the temporary name in the message."""


class NewFile:
    """A file being written. part: write here. path: the final name, which may still change until the context ends."""

    def __init__(self, path: Path):
        self.path = path
        self.part = part_of(path)


def part_of(path: Path) -> Path:
    """Return the temporary name of `path`, which also reserves `path` for one process."""
    return path.with_name(path.name + UNFINISHED)


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the same folder to write to; on success that file atomically replaces `path`.

    The temporary name begins like `path`, ends in `.part` and is unique. On any exception the part is removed; a killed
    process leaves it. Either way the former file `path` stays.
    """
    part = path.with_name(f"{path.name[:80]}.{secrets.token_hex(4)}{UNFINISHED}")  # at most 255 bytes
    try:
        yield part
        _retry(lambda: _sync(part))
        _retry(lambda: os.replace(part, path))
    except BaseException:
        _remove(part)
        raise


@contextmanager
def new_file(names: Iterable[Path]) -> Iterator[NewFile]:
    """Reserve the first free one of `names` among all processes, and publish the file there on success.

    No existing file is replaced: if another program takes the name meanwhile, the next free one is used. On any
    exception the part is removed; a killed process leaves it, and its name is not used again. Raises OSError where no
    name can be reserved, NotPublished where the finished file cannot be renamed for some seconds.
    """
    names = iter(names)
    file = _claim(names)
    try:
        yield file
    except BaseException:
        _remove(file.part)
        raise
    try:
        _retry(lambda: _sync(file.part))
        _publish(file, names)
    except OSError as error:
        if is_full(error):  # buffered data may be missing from the file
            _remove(file.part)
            raise
        raise NotPublished(
            f"The finished file could not be named {file.path.name} ({error.strerror or error}). It is complete:"
            f" {file.part}. Rename it."
        ) from error


def check_name(names: Iterable[Path]) -> None:
    """Raise OSError where the first free one of `names` cannot be written. It is reserved for a moment to see that."""
    _remove(_claim(iter(names)).part)


def _claim(names: Iterator[Path]) -> NewFile:
    path = None
    for path in names:
        file = NewFile(path)
        try:
            os.close(os.open(file.part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:  # another process is writing it, or was killed meanwhile
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
            _retry(lambda: rename_to_new(file.part, file.path))
            return
        except FileExistsError:
            taken = file.path
            free = (path for path in names if not os.path.lexists(part_of(path)))
            file.path = next(free, None) or taken
            if file.path == taken:
                raise
            log.warning("UltraGen: %s was taken by another program meanwhile, using %s.", taken, file.path.name)


def rename_to_new(part: Path, path: Path) -> None:
    """Rename a file. Raises FileExistsError where the name is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        if not os.path.samefile(part, path):  # else the link exists: a network folder failed late
            raise
    except OSError:  # a file system without hard links
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


def _retry(action: Callable[[], None]) -> None:
    for pause in _RETRY_PAUSES:
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
    """Whether an error means a full disk or quota. PyAV's errors have the same numbers."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def files_in(folder: Path, ending: str = "", deep: bool = False) -> Iterator[Path]:
    """Yield what `folder` holds except folders, by the ending of names. deep: what its subfolders hold too.

    A folder that cannot be read holds nothing: a disk that is not connected must not keep the nodes from loading.
    """
    for path, _, names in os.walk(folder):
        yield from (Path(path) / name for name in names if name.endswith(ending))
        if not deep:
            return


def file_within(folder: Path, name: str) -> Path:
    """Return the file `name` within `folder`. Links are followed, as ComfyUI's own nodes do.

    Raises ValueError where there is no such file, and for a name that leads out of `folder`.
    """
    path = Path(os.path.normpath(folder / name.replace("\\", "/"))) if "\0" not in name else folder
    # In this order: looking for a file of another machine makes Windows tell that machine who the user is.
    if not path.is_relative_to(os.path.normpath(folder)) or not os.path.isfile(path):
        raise ValueError(f"{printable(name)} must be a file in {folder}. Put it there, or correct the name.")
    return path


def check_folder(folder: Path, needed: int, purpose: str) -> None:
    """Raise OSError where a folder is not writable or its disk has fewer than `needed` free bytes.

    Network mounts may report 0 free bytes or fail: the space is then unknown, which is not an error.
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
            f"The {purpose} needs about {needed / 1e9:.2f} GB in {folder}, but its disk has only {free / 1e9:.2f} GB"
            " free. Free some space, or choose another codec, a higher crf or fewer frames."
        )
