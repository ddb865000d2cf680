"""Which errors mean that memory ran out: the device's, where smaller pieces help, or the computer's own."""

from __future__ import annotations

import comfy.model_management as mm
import torch

from ..out_of_ram import is_host_out_of_memory

# PyTorch has a class of its own for its allocator's failures only; libraries below it say so in words.
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
    """Not ComfyUI's out-of-memory class, which would start core's inexact tiles over ours."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the device (GPU) ran out; never for this module's own NotEnoughMemory."""
    if isinstance(error, NotEnoughMemory) or is_host_out_of_memory(error):
        return False
    newer = getattr(mm, "is_oom", None)
    if newer and newer(error):  # which also clears the error that CUDA keeps
        return True
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _DEVICE)
