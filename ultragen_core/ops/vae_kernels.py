"""Bias, residual sum, RMS norm and SiLU in one pass over memory: a Triton kernel, imported only where it can run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ELEMENTS = 2048  # of one program


# Not compiled anew for every tile's sizes and corner.
VARYING = ["rows", "columns", "top", "left", "out_rows", "out_columns"]


@triton.jit(do_not_specialize=VARYING)
def _sum_norm_silu(
    value, bias, skip, gamma, out, rows, columns, top, left, out_rows, out_columns,
    value_t, value_h, value_w, skip_t, skip_h, skip_w, out_t, out_h, out_w, scale, eps,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    BIAS: tl.constexpr, SKIP: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    frame = (tl.program_id(0) // rows).to(tl.int64)
    row = (tl.program_id(0) % rows).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, PADDED)
    real = (column < columns)[:, None] & (channel < CHANNELS)[None, :]
    at = value + frame * value_t + row * value_h + column[:, None] * value_w + channel[None, :]
    x = tl.load(at, mask=real, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    if SKIP:
        beside = skip + frame * skip_t + row * skip_h + column[:, None] * skip_w + channel[None, :]
        x += tl.load(beside, mask=real, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(at, x, mask=real)
    if NORM:
        length = tl.sqrt(tl.sum(x * x, axis=1))
        y = x * (scale / tl.maximum(length, eps))[:, None]
        y = y * tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
        y = y * tl.sigmoid(y)
        in_row = (row >= top) & (row < top + out_rows)
        inside = (column >= left) & (column < left + out_columns) & in_row
        target = out + frame * out_t + (row - top) * out_h + (column[:, None] - left) * out_w + channel[None, :]
        tl.store(target, y, mask=real & inside[:, None])


def fits(*maps: torch.Tensor | None) -> bool:
    """Whether the maps (1, c, t, h, w) are channel-last in memory and as narrow as a program can hold."""
    return all(x is None or (x.stride(1) == 1 and x.shape[1] <= ELEMENTS) for x in maps)


def sum_up(value: torch.Tensor, bias: torch.Tensor | None, skip: torch.Tensor | None) -> None:
    """value += bias + skip."""
    _launch(value, bias, skip, True, None, None, 0.0, 0.0, (0, 0))


def norm_silu(
    value: torch.Tensor,
    bias: torch.Tensor | None,
    skip: torch.Tensor | None,
    keep: bool,
    gamma: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    eps: float,
    corner: tuple[int, int],
) -> None:
    """out = SiLU(norm(value + bias + skip)) from `corner` on, as large as `out`; a sum to `keep` stays in `value`."""
    _launch(value, bias, skip, keep and not (bias is None and skip is None), gamma, out, scale, eps, corner)


def _launch(value, bias, skip, keep, gamma, out, scale, eps, corner) -> None:
    _, channels, frames, rows, columns = value.shape
    padded = triton.next_power_of_2(channels)
    block = max(1, ELEMENTS // padded)
    beside, made = value if skip is None else skip, value if out is None else out
    _sum_norm_silu[(frames * rows, triton.cdiv(columns, block))](
        value, bias, beside, gamma, made, rows, columns, *corner, *made.shape[-2:],
        *value.stride()[2:], *beside.stride()[2:], *made.stride()[2:], scale, eps,
        CHANNELS=channels, PADDED=padded, BLOCK=block,
        BIAS=bias is not None, SKIP=skip is not None, KEEP=keep, NORM=out is not None,
    )  # fmt: skip
