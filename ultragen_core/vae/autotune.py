"""cuDNN's search for the fastest plan of a convolution: where it pays, and in how much memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

AUTOTUNED_FROM = 2**24  # input elements; below, a better cuDNN plan does not win back the time of trying plans
HOPPER = (9, 0)  # compute capability of H100 and H200
SUITED = 64  # there cuDNN's first plan is as fast as its best for input channels in multiples of this
SEARCH_BYTES = 512 * 2**20  # of cuDNN's plans while their times are compared

_searched = threading.local()  # .keys: convolutions with a plan; cuDNN keeps plans for each thread of its own


def autotune_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether cuDNN should time its plans for this convolution once, 0.4 s, and keep the fastest.

    Measured in a 4K decode on an H100: for 96 channels the first plan computes 248 TFLOP/s, the fastest 378; for 192
    and 384 both compute 540 to 600. On other kinds of card neither was measured.
    """
    if x.numel() < AUTOTUNED_FROM or weight.shape[0] <= 16:  # to 3 channels all plans are alike, and slow to try
        return False
    if weight.ndim == 5 and weight.shape[2] == 1:  # nearly all of first frames: one call a tile does not win it back
        return False
    return weight.shape[1] % SUITED > 0 or torch.cuda.get_device_capability(x.device) != HOPPER


@contextmanager
def bounded_search(x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Iterator[None]:
    """Inside, cuDNN's search for the fastest plan gets SEARCH_BYTES at most.

    Asked what a plan may use, cudaMallocAsync, ComfyUI's usual allocator, takes all memory that the process may have:
    139 GiB on an H200, and handing it back took longer than the search.
    """
    if torch.cuda.get_allocator_backend() == "native":  # a limit would count the blocks in its cache as well
        yield
        return
    # No limit for later convolutions of a kind, which use the plan found: memory statistics before each would keep the
    # host busier than the launches.
    key = x.device, x.dtype, x.shape, x.stride(), x.data_ptr() % 64, weight.shape, weight.data_ptr() % 64, stride
    known = vars(_searched).setdefault("keys", set())
    if key in known:
        yield
        return
    result = x[:, 0].numel() * weight.shape[0] * x.element_size()  # at most: without padding it shrinks
    most = torch.cuda.memory_allocated(x.device) + result + SEARCH_BYTES
    total = torch.cuda.get_device_properties(x.device).total_memory
    # torch before 2.8 cannot tell the limit; then nobody has set one, or it is lost. Where none was set, this allocator
    # tells 2**64 bytes, which no limit may be.
    limit = min(1.0, getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(x.device))
    torch.cuda.set_per_process_memory_fraction(min(most / total, limit), x.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(limit, x.device)
    known.add(key)
