"""The additions, RMS norms and SiLUs of the Wan VAE: plain PyTorch, or one Triton pass over memory.

Maps have the shape (1, c, t, h, w). The Triton form needs them channel-last in memory and otherwise gives way to the
plain form. `triton` comes from `dispatch.triton_for(x, VAE_KERNEL_MODULES)`, asked once a pass of a decode or encode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import dispatch

VAE_KERNEL_MODULES = ("vae_kernels",)
EPS = 1e-12  # the default of torch.nn.functional.normalize, which ComfyUI's RMS_norm calls


class DeferredAdd(NamedTuple):
    """value + bias + skip, not added yet: the next reader adds them in a pass over memory that it makes anyway.

    value: (1, c, t, h, w); with a bias or a skip it is scratch memory, which add_ and norm_silu_ overwrite.
    bias: (c,) or None. skip: of value's shape, never overwritten, or None.
    """

    value: Tensor
    bias: Tensor | None = None
    skip: Tensor | None = None

    @property
    def frames(self) -> int:
        return self.value.shape[2]


@dataclass(frozen=True)
class RMSNorm:
    """RMS norm over channels: x / max(|x|, EPS) * scale * gamma + offset, rounded at the steps where ComfyUI rounds.

    scale: the square root of the channels. gamma, offset: (c,), on the device and in the dtype of the run.
    """

    scale: float
    gamma: Tensor
    offset: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x (1, c, ...) -> a new tensor of the same shape."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(EPS)
        y = (x / length).mul_(self.scale).mul_(self.gamma.view(shape))
        return y if self.offset is None else y.add_(self.offset.view(shape))


def add_(x: DeferredAdd, triton: bool) -> Tensor:
    """Add bias and skip to x.value in place, and return it."""
    if x.bias is None and x.skip is None:
        return x.value
    if triton:
        kernels = dispatch.kernels("vae_kernels")
        if kernels.fits(x.value, x.skip):
            kernels.add_(*x)
            return x.value
    if x.bias is not None:
        x.value.add_(x.bias.view(1, -1, 1, 1, 1))
    if x.skip is not None:
        x.value.add_(x.skip)
    return x.value


def norm_silu_(
    x: DeferredAdd, norm: RMSNorm, out: Tensor, crop: tuple[slice, slice], keep_sum: bool, triton: bool
) -> Tensor:
    """Write SiLU(norm(value + bias + skip)) of the rows and columns `crop` into `out`. Overwrites x.value.

    Returns x.value, uncropped: with `keep_sum` it holds the sum, else its content is undefined.
    """
    if triton and norm.offset is None:
        kernels = dispatch.kernels("vae_kernels")
        if kernels.fits(x.value, x.skip, out):
            kernels.norm_silu_(*x, keep_sum, norm.gamma, out, norm.scale, EPS, (crop[0].start, crop[1].start))
            return x.value
    total = add_(x, triton)
    out.copy_(F.silu(norm(total[..., crop[0], crop[1]]), inplace=True))
    return total
