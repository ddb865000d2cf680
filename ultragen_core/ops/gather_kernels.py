"""Triton form of gather.py."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import power_of_2
from .gather import MOST_PARTS

ROWS = 4  # of one program
WIDEST = 512  # values of a row that a program moves at a time
VARYING = [*(f"s{part}" for part in range(1, MOST_PARTS)), "length"]  # one kernel for all exchanges


@triton.jit
def _found(base, first, wanted, part, start):
    """Take `part`, whose first row has the number `start`, for the wanted rows that are not before it."""
    later = wanted >= start
    return tl.where(later, part.to(tl.int64), base), tl.where(later, start, first)


@triton.jit(do_not_specialize=VARYING)
def _gather_kernel(
    p0, p1, p2, p3, p4, p5, p6, p7, s1, s2, s3, s4, s5, s6, s7, order, out, length,
    WIDTH: tl.constexpr, BYTES: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows `order` of all parts. p: the parts. s: the number of the first row of each part but the first."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < length
    wanted = tl.load(order + row, inside, other=0)
    first = tl.zeros_like(wanted)
    base = p0.to(tl.int64) + first
    if PARTS > 1:
        base, first = _found(base, first, wanted, p1, s1)
    if PARTS > 2:
        base, first = _found(base, first, wanted, p2, s2)
    if PARTS > 3:
        base, first = _found(base, first, wanted, p3, s3)
    if PARTS > 4:
        base, first = _found(base, first, wanted, p4, s4)
    if PARTS > 5:
        base, first = _found(base, first, wanted, p5, s5)
    if PARTS > 6:
        base, first = _found(base, first, wanted, p6, s6)
    if PARTS > 7:
        base, first = _found(base, first, wanted, p7, s7)
    source = (base + (wanted - first) * (WIDTH * BYTES)).to(p0.dtype)
    if ALIGNED:
        source = tl.multiple_of(source, 16)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = inside[:, None] & (column < WIDTH)[None, :]
        value = tl.load(source[:, None] + column[None, :], mask)
        tl.store(out + row[:, None] * WIDTH + column[None, :], value, mask)


def gather(parts: Sequence[Tensor], order: Tensor) -> Tensor:
    """Triton form of ops.gather.gather: the same arguments and result."""
    width, length, count = parts[0].shape[1], order.shape[0], len(parts)
    out, missing = parts[0].new_empty(length, width), MOST_PARTS - count
    # Wide loads, which a link between GPUs needs more than memory does.
    aligned = width * out.element_size() % 16 == 0 and not any([part.data_ptr() % 16 for part in parts])
    starts = accumulate([part.shape[0] for part in parts[:-1]])
    _gather_kernel[(-(-length // ROWS),)](
        *parts, *parts[:1] * missing, *starts, *[0] * missing, order, out, length,
        WIDTH=width, BYTES=out.element_size(), ALIGNED=aligned, PARTS=count, ROWS=ROWS,
        BLOCK=min(power_of_2(width), WIDEST),
    )  # fmt: skip
    return out


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where the kernel does not run on this device or gives other numbers than plain PyTorch."""
    parts = [torch.arange(9 * rows, device=device).view(rows, 9).to(dtype) + rows for rows in (3, 4, 2)]
    order = torch.tensor([5, 0, 8, 2, 3, 7], device=device)
    if not torch.equal(gather(parts, order), torch.cat(parts).index_select(0, order)):
        raise RuntimeError("Triton's gather moves rows to other places than PyTorch")
