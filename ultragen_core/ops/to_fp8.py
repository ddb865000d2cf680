"""Inputs of fp8 matrix products: GELU, scale, clamp and rounding in one pass over memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import dispatch
from .quantize import FP8, LARGEST


def to_fp8(x: Tensor, scale: Tensor | None, gelu: bool, triton: bool) -> Tensor:
    """Return x / scale in FP8, rounded as ComfyUI's fp8 layers round their inputs. x: any shape, contiguous.

    scale: one float32 value, or None for 1. gelu: use GELU(x), in its tanh form, for x. Each step is rounded to x's
    dtype. Values beyond the range of FP8 are clamped to it.
    """
    if triton:
        return dispatch.kernels("to_fp8_kernels").to_fp8(x, scale, gelu)
    y = F.gelu(x, approximate="tanh") if gelu else x
    if scale is not None:
        y = y * (1.0 / scale).to(y.dtype)
    return y.clamp(-LARGEST, LARGEST).to(FP8)
