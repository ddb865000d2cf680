"""Rows of several tensors, put together in any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch


def gather(parts: Sequence[Tensor], order: Tensor, triton: bool) -> Tensor:
    """Return the rows of all parts, one after the other, in this order: parts (rows, width) -> (len(order), width).

    parts: of one dtype and width, contiguous. order: int64, on the first part's device. There the Triton form reads the
    other parts, which may be on GPUs whose memory that device can access; the plain form needs all on one device.
    """
    if triton and len(parts) <= dispatch.kernels("gather_kernels").MOST_PARTS:
        return dispatch.kernels("gather_kernels").gather(parts, order)
    return torch.cat(list(parts)).index_select(0, order)
