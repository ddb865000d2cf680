"""Which errors mean that RAM ran out, on any system."""

from __future__ import annotations

import errno

import torch

_WORDS = ("defaultcpuallocator", "out_of_host_memory", "host_allocation_failed", "cannot allocate memory", "bad_alloc")


def is_host_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the host's memory (RAM) ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return any(words in str(error).lower() for words in _WORDS)
