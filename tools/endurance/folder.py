"""Inspect a server: its files by content, its memory, its open files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np


def digests(folder: Path) -> dict[Path, str]:
    """Return the sha256 of every file below a folder."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def frames(video: Path) -> Iterator[np.ndarray]:
    """Yield the decoded frames, (height, width, 3) uint8. Raises av.FFmpegError for a damaged file."""
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def frames_digest(video: Path) -> str:
    sha = hashlib.sha256()
    for frame in frames(video):
        sha.update(frame.tobytes())
    return sha.hexdigest()


def resident_bytes(pid: int) -> int:
    """Return the private memory of a process, without mapped files. Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no RssAnon line.")


def open_files(pid: int) -> list[str]:
    """Return the regular files that a process has open. Linux only."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = link.readlink()
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.is_absolute() and not str(target).startswith(("/dev/", "/memfd:")):
            found.append(str(target))
    return sorted(found)
