"""Memory of the GPU, free RAM, ComfyUI's estimate for a run, and errors that mean out of memory: on the device, where
smaller pieces help, or in RAM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import comfy.model_management
import torch
from comfy.cli_args import args

from ..out_of_ram import is_host_out_of_memory
from .compat import is_oom

# PyTorch has a class of its own for its allocator's failures only; libraries below it report theirs in words.
_DEVICE = (
    "out of memory",  # CUDA, HIP, XPU, MPS
    "out_of_device_memory",  # Level Zero
    "out_of_resources",
    "alloc_failed",  # cuDNN, cuBLAS, cuSPARSE, hipBLAS
    "allocfailed",  # MIOpen
    "device_allocation_failed",
    "rocblas_status_memory_error",
    "invalid buffer size",  # Metal
    "can not allocate memory block",  # Arc's limit of one block
    "not enough gpu video memory",  # DirectML
)


class NotEnoughMemory(RuntimeError):
    """Memory that is missing for the smallest piece. Not ComfyUI's class, which would start its inexact tiles."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's (GPU's) memory ran out; False for NotEnoughMemory and for RAM."""
    if isinstance(error, NotEnoughMemory) or is_host_out_of_memory(error):
        return False
    if is_oom(error) or isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _DEVICE)


def may_pin() -> bool:
    """Whether copies may go through pinned memory; False with ComfyUI's --disable-pinned-memory."""
    return not args.disable_pinned_memory


@contextmanager
def estimated_memory(base, estimate: Callable[..., int]) -> Iterator[None]:
    """Replace base.memory_required for one run, and restore what an outer run needs.

    A sampler's callback may itself sample with a clone on the same base; ComfyUI then loses the outer run's patcher.
    """
    before, patcher = vars(base).get("memory_required"), base.current_patcher
    base.memory_required = estimate
    try:
        yield
    finally:
        base.current_patcher = patcher
        if before is None:
            del base.memory_required
        else:
            base.memory_required = before


def gpu_memory() -> int | None:
    """Return the bytes of the GPU that ComfyUI uses; None without a GPU, or where ComfyUI cannot tell."""
    device = comfy.model_management.get_torch_device()
    guessed = device.type == "privateuseone"  # DirectML
    return None if device.type == "cpu" or guessed else comfy.model_management.get_total_memory(device)


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
