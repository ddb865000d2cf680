"""Files of finished jobs: listed on the host, checked and published in the folder of results."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path, PurePosixPath

from tools.cluster.ledger import DoneJob, ResultFile
from tools.cluster.pack import UNFINISHED, printable, rename_to_new

PIECE = 32 * 2**20  # bytes of a file in one message
INCOMING, STATES, OUTPUTS = ".incoming", ".states", ".outputs"  # folders of our own among the results


def reported_files(outputs: dict, folder: Path) -> list[ResultFile]:
    """Return the files that a graph's output nodes reported, with their hashes. folder: the server's output folder."""
    names = {}
    for output in outputs.values():
        for value in output.values():
            for file in value if isinstance(value, list) else ():
                if isinstance(file, dict) and file.get("type") == "output" and file.get("filename"):
                    names[str(PurePosixPath(file.get("subfolder", ""), file["filename"]))] = None
    return [describe_file(path_within(folder, name), name) for name in names]


def folders_of(output: Path, token: str) -> list[Path]:
    """Return the folders of a job in a server's output folder. Kept latents are one folder deeper: latents/token."""
    return [path_within(output, token), *output.glob(f"*/{token}")]


def written_files(output: Path, token: str) -> list[ResultFile]:
    """Return all finished files in the folders of a job, reported or not, with their hashes."""
    paths = sorted(path for folder in folders_of(output, token) for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(output).as_posix() for path in paths if path.suffix != UNFINISHED]
    return [describe_file(path_within(output, name), name) for name in names]


def describe_file(path: Path, name: str) -> ResultFile:
    sha, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            sha.update(piece)
            size += len(piece)
    return ResultFile(name, size, sha.hexdigest())


def path_within(folder: Path, name: str) -> Path:
    """Return the path of `name` in a folder. Raises ValueError for a name that leads out of it, also through links."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
    whole = folder / path
    if not inside or "\0" in name or not whole.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"A result must be inside {folder}, got the name {printable(name)}.")
    return whole


def is_whole(done: DoneJob, folder: Path) -> bool:
    """Whether all reported files of a finished job are there, unchanged. A job without any is not done."""
    if not done.files:
        return False
    try:
        paths = [path_within(folder, file.name) for file in done.files]
        sizes = [path.stat().st_size for path in paths]
    except (OSError, ValueError):
        return False
    if sizes != [file.size for file in done.files]:
        return False
    return all(describe_file(path, file.name) == file for path, file in zip(paths, done.files, strict=True))


class Results:
    """The folder of results. Only the driver that holds the ledger writes there."""

    def __init__(self, folder: Path):
        self.folder = folder

    def clean(self) -> None:
        """Remove what a killed run left."""
        for ours in (INCOMING, OUTPUTS):
            shutil.rmtree(self.folder / ours, ignore_errors=True)

    def forget_states(self, job: str) -> None:
        """Remove the states that UltraGen Resume kept of a job that is done."""
        shutil.rmtree(self.folder / STATES / job, ignore_errors=True)

    def receive(self, file: ResultFile, pieces: Iterable[bytes]) -> Path:
        """Write a file from its pieces, under a temporary name. Raises ValueError where they do not have its hash."""
        part = self.folder / INCOMING / secrets.token_hex(8)
        part.parent.mkdir(parents=True, exist_ok=True)
        sha = hashlib.sha256()
        with open(part, "xb") as target:
            for piece in pieces:
                sha.update(piece)
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        if sha.hexdigest() != file.sha256:
            raise ValueError(f"{file.name} arrived damaged: its sha256 is not the one that the host computed.")
        return part

    def publish(self, file: ResultFile, part: Path) -> ResultFile:
        """Move a complete file to the first free name. No file is replaced; an equal one takes its place."""
        for name in _names(file.name):
            path = path_within(self.folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            published = ResultFile(name, file.size, file.sha256)
            try:
                rename_to_new(part, path)
                return published
            except FileExistsError:
                if path.is_file() and path.stat().st_size == file.size and describe_file(path, name) == published:
                    part.unlink()
                    return published
        raise AssertionError("endless names")


def _names(name: str) -> Iterator[str]:
    """Yield a name, and then the name with -2, -3, ... before its ending."""
    yield name
    path = PurePosixPath(name)
    for number in count(2):
        yield str(path.with_name(f"{path.stem}-{number}{path.suffix}"))


def pieces_of(size: int, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Read a file of `size` bytes with read(offset, length)."""
    for offset in range(0, size, PIECE):
        yield read(offset, min(PIECE, size - offset))
