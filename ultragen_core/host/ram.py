"""How much RAM is free, in a container too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import comfy.model_management
import torch


def free_ram(root: Path = Path("/")) -> int:
    """Return the bytes of RAM that this process may take: ComfyUI's number, or what a container's limit leaves.

    root: the folder that holds proc/ and sys/.
    """
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    return max(0, min([free, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield the bytes left below each limit of this process's control groups (cgroup v1 and v2) and their parents.

    File cache that the kernel would drop first does not count as used.
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
            with suppress(OSError, ValueError):  # the group is outside this container's view, or has no limit ("max")
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
