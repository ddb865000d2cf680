"""Rows of several tensors, put together in any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch

MOST_PARTS = 8  # of the Triton form


def gather(parts: Sequence[Tensor], order: Tensor, triton: bool) -> Tensor:
    """Return the rows of all parts, one after the other, in this order: parts (rows, width) -> (len(order), width).

    parts: of one dtype and width, contiguous. order: int64, on the first part's device. There the Triton form reads the
    other parts, which may be on GPUs whose memory that device can access; it takes at most MOST_PARTS. The plain form
    needs all on one device.
    """
    if triton:
        return dispatch.kernels("gather_kernels").gather(parts, order)
    return torch.cat(list(parts)).index_select(0, order)
