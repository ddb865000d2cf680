"""Triton form of vae.py: bias, skip, RMS norm and SiLU in one pass over memory. Imported only where it can run.

Arithmetic is float32 whatever the dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .dispatch import check_equal, power_of_2

ELEMENTS = 2048  # of one program

# Differ from tile to tile, which must not compile the kernel again.
VARYING = ["rows", "columns", "top", "left", "out_rows", "out_columns"]


@triton.jit(do_not_specialize=VARYING)
def _add_norm_silu(
    value, bias, skip, gamma, out, rows, columns, top, left, out_rows, out_columns,
    value_t, value_h, value_w, skip_t, skip_h, skip_w, out_t, out_h, out_w, scale, eps,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    BIAS: tl.constexpr, SKIP: tl.constexpr, KEEP_SUM: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    frame = (tl.program_id(0) // rows).to(tl.int64)
    row = (tl.program_id(0) % rows).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, PADDED)
    real = (column < columns)[:, None] & (channel < CHANNELS)[None, :]
    source = value + frame * value_t + row * value_h + column[:, None] * value_w + channel[None, :]
    x = tl.load(source, mask=real, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    if SKIP:
        skipped = skip + frame * skip_t + row * skip_h + column[:, None] * skip_w + channel[None, :]
        x += tl.load(skipped, mask=real, other=0.0).to(tl.float32)
    if KEEP_SUM:
        tl.store(source, x, mask=real)
    if NORM:
        length = tl.sqrt(tl.sum(x * x, axis=1))
        y = x * (scale / tl.maximum(length, eps))[:, None]
        y = y * tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
        y = y * tl.sigmoid(y)
        in_row = (row >= top) & (row < top + out_rows)
        inside = (column >= left) & (column < left + out_columns) & in_row
        target = out + frame * out_t + (row - top) * out_h + (column[:, None] - left) * out_w + channel[None, :]
        tl.store(target, y, mask=real & inside[:, None])


def fits(*maps: Tensor | None) -> bool:
    """Whether the maps (1, c, t, h, w) are channel-last in memory and at most ELEMENTS channels wide."""
    return all(x is None or (x.stride(1) == 1 and x.shape[1] <= ELEMENTS) for x in maps)


def add_(value: Tensor, bias: Tensor | None, skip: Tensor | None) -> None:
    """value += bias + skip."""
    _launch(value, bias, skip, True, None, None, 0.0, 0.0, (0, 0))


def norm_silu_(
    value: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    keep_sum: bool,
    gamma: Tensor,
    out: Tensor,
    scale: float,
    eps: float,
    corner: tuple[int, int],
) -> None:
    """out = SiLU(norm(value + bias + skip)) of the rows and columns from `corner` on, as many as `out` has.

    With `keep_sum`, `value` becomes the sum; else it stays as given.
    """
    _launch(value, bias, skip, keep_sum and not (bias is None and skip is None), gamma, out, scale, eps, corner)


def _launch(value, bias, skip, keep_sum, gamma, out, scale, eps, corner) -> None:
    _, channels, frames, rows, columns = value.shape
    padded = power_of_2(channels)
    block = max(1, ELEMENTS // padded)
    # The kernel never touches a pointer whose flag is off; it needs some tensor there.
    skipped, target = value if skip is None else skip, value if out is None else out
    _add_norm_silu[(frames * rows, -(-columns // block))](
        value, bias, skipped, gamma, target, rows, columns, *corner, *target.shape[-2:],
        *value.stride()[2:], *skipped.stride()[2:], *target.stride()[2:], scale, eps,
        CHANNELS=channels, PADDED=padded, BLOCK=block,
        BIAS=bias is not None, SKIP=skip is not None, KEEP_SUM=keep_sum, NORM=out is not None,
    )  # fmt: skip


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise where the kernel does not run on this device, or is off by 1% or more in this dtype."""
    generator = torch.Generator().manual_seed(0)
    value, skip = (
        torch.randn(1, 2, 5, 7, 96, generator=generator).to(device, dtype).permute(0, 4, 1, 2, 3) for _ in range(2)
    )
    bias, gamma = (torch.randn(96, generator=generator).to(device, dtype) for _ in range(2))
    channels = (1, -1, 1, 1, 1)
    total = value.float() + bias.float().view(channels) + skip.float()
    expected = F.silu(F.normalize(total, dim=1) * 96**0.5 * gamma.float().view(channels))
    out = torch.empty_like(value)
    norm_silu_(value, bias, skip, True, gamma, out, 96**0.5, 1e-12, (0, 0))
    check_equal("norm_silu", out, expected)
    check_equal("add", value, total)
