"""How much RAM is free for this process: ComfyUI's number, or less where a container's limit is nearer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import comfy.model_management
import torch


def free_ram(root: Path = Path("/")) -> int:
    """Bytes of RAM that can be taken. `root` is where /proc and /sys are found."""
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    return max(0, min([free, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left below the limit of each control group that holds this process, of version 2 and 1.

    File cache that the kernel would drop first does not count as used. Limits of outer groups hold for inner ones.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _left(root / "sys/fs/cgroup", path, ("memory.max", "memory.high"), "memory.current", "")
            elif "memory" in controllers.split(","):
                top = root / "sys/fs/cgroup/memory"
                yield from _left(top, path, ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")


def _left(top: Path, path: str, limits: tuple[str, ...], used: str, prefix: str) -> Iterator[int]:
    group = top / path.strip("/")
    for folder in (group, *group.parents):
        for name in limits:
            with suppress(OSError, ValueError):  # no such group in this container's view, or no limit ("max")
                limit = int((folder / name).read_text())
                yield limit - int((folder / used).read_text()) + _cache(folder, f"{prefix}inactive_file")
        if folder == top:
            return


def _cache(folder: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
