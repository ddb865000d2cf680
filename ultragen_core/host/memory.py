"""The device's memory: how much a GPU has, which errors mean that it ran out, and whether copies may pin the host's."""

from __future__ import annotations

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


def gpu_memory() -> int | None:
    """Return the bytes of the GPU that ComfyUI uses; None without a GPU, or where ComfyUI cannot tell."""
    device = comfy.model_management.get_torch_device()
    guessed = device.type == "privateuseone"  # DirectML
    return None if device.type == "cpu" or guessed else comfy.model_management.get_total_memory(device)


def may_pin() -> bool:
    """Whether copies may go through pinned memory; False with ComfyUI's --disable-pinned-memory."""
    return not args.disable_pinned_memory
