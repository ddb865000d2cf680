"""The arithmetic of the Wan VAE's layers, on maps (1, c, t, h, w) that are channel-last in memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .geometry import Window

EPS = 1e-12  # torch.nn.functional.normalize's own
SCORE_BYTES = 256 * 2**20
PLANNED_FROM = 2**24  # elements; below, a better cuDNN plan does not win back the 0.07 s that trying plans takes


class Sum(NamedTuple):
    """value + bias + skip, added up by whoever reads it next, in the pass over memory that it makes anyway.

    A Sum with something to add owns its `value`: the total is left there.
    """

    value: torch.Tensor
    bias: torch.Tensor | None = None
    skip: torch.Tensor | None = None

    @property
    def frames(self) -> int:
        return self.value.shape[2]

    def total(self) -> torch.Tensor:
        total = self.value
        if self.bias is None and self.skip is None:
            return total
        kernels = fused(total.device, total.dtype)
        if kernels and kernels.fits(total, self.skip):
            kernels.sum_up(*self)
            return total
        if self.bias is not None:
            total.add_(self.bias.view(1, -1, 1, 1, 1))
        if self.skip is not None:
            total.add_(self.skip)
        return total


@dataclass(frozen=True)
class Norm:
    """The VAE's RMS norm over channels, x / max(|x|, eps) * scale * gamma + offset, rounded where ComfyUI's rounds."""

    scale: float
    gamma: torch.Tensor
    offset: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(EPS)
        y = (x / length).mul_(self.scale).mul_(self.gamma.view(shape))
        return y if self.offset is None else y.add_(self.offset.view(shape))


def norm_silu(x: Sum, norm: Norm, out: torch.Tensor, crop: tuple[slice, slice], keep: bool) -> torch.Tensor:
    """Write SiLU(norm(x)), cropped, to `out`. Returns x added up and uncropped, if it is to be kept."""
    kernels = fused(out.device, out.dtype)
    if kernels and norm.offset is None and kernels.fits(x.value, x.skip, out):
        kernels.norm_silu(*x, keep, norm.gamma, out, norm.scale, EPS, (crop[0].start, crop[1].start))
        return x.value
    total = x.total()
    out.copy_(F.silu(norm(total[..., crop[0], crop[1]]), inplace=True))
    return total


@functools.cache
def fused(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The Triton kernels, where they run and agree with plain PyTorch; else None, and plain PyTorch does it."""
    if device.type != "cuda":
        return None
    try:
        from ..ops import vae_kernels as kernels

        _try_kernels(kernels, device, dtype)
    except Exception as error:  # whatever a missing compiler, an old driver or a new GPU may raise
        logging.info("UltraGen VAE: no fused kernel here, plain PyTorch instead (%s).", error)
        return None
    return kernels


def _try_kernels(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    value, skip = (
        torch.randn(1, 2, 5, 7, 96, generator=generator).to(device, dtype).permute(0, 4, 1, 2, 3) for _ in range(2)
    )
    bias, gamma = (torch.randn(96, generator=generator).to(device, dtype) for _ in range(2))
    total = value.float() + bias.float().view(1, -1, 1, 1, 1) + skip.float()
    expected = F.silu(Norm(96**0.5, gamma.float(), None)(total))
    out = torch.empty_like(value)
    kernels.norm_silu(value, bias, skip, True, gamma, out, 96**0.5, EPS, (0, 0))
    for made, right in ((out, expected), (value, total)):
        error = ((made.float() - right).norm() / right.norm()).item()
        if not error < 1e-2:
            raise RuntimeError(f"the kernel is off by {error:.1e}")


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, ...]) -> Sum:
    """(1, c, t, h, w) with a 3D weight, or frame by frame with a 2D one; nothing is padded."""
    if weight.ndim == 4:
        made = _convolve(x[0].transpose(0, 1), weight, bias, stride)
        return made._replace(value=made.value.transpose(0, 1)[None])
    return _convolve(x, weight, bias, stride)


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, ...]) -> Sum:
    if x.is_cuda and torch.version.hip is None and torch.backends.cudnn.enabled:
        # Named outright: some torch versions send 16-bit 3D convolutions past cuDNN; the bias would be its own pass.
        zeros, ones = (0,) * len(stride), (1,) * len(stride)
        tf32 = torch.backends.cudnn.allow_tf32
        planned = _plans_pay(x, weight)
        return Sum(torch.cudnn_convolution(x, weight, zeros, stride, ones, 1, planned, False, tf32), bias)
    return Sum((F.conv2d if weight.ndim == 4 else F.conv3d)(x, weight, bias, stride))


def _plans_pay(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether cuDNN should try its plans for this convolution, once, and keep the fastest."""
    if torch.cuda.get_allocator_backend() != "native":
        # Asked what a plan may use, cudaMallocAsync, ComfyUI's usual allocator, takes all free memory for a moment:
        # 139 GiB on an H200, where a decode then took twice as long. Nothing is known of others.
        return False
    return x.numel() >= PLANNED_FROM and weight.shape[0] > 16  # to 3 channels all plans are alike, and slow to try


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, check: Callable[[], None]) -> torch.Tensor:
    """One head over all tokens, q, k, v (s, c), in blocks of queries: no flash kernel takes a head this wide."""
    out = torch.empty_like(q)
    q, keys = q * q.shape[1] ** -0.5, k.t()
    block = max(1, SCORE_BYTES // (k.shape[0] * k.element_size()))
    # Without data only memory counts, and all blocks from the second on take the same.
    for start in range(0, q.shape[0], block)[: 2 if q.is_meta else None]:
        check()
        scores = q[start : start + block] @ keys
        out[start : start + block] = torch.softmax(scores, dim=-1) @ v
    return out


def paste(out: torch.Tensor, source: torch.Tensor) -> None:
    """out.copy_(source), both (1, c, ...): 16 bytes at a time where channels lie together, up to four times as fast."""
    maps = [x.movedim(1, -1) for x in (out, source)]
    step = 16 // out.element_size()
    if out.is_cuda and all(x.stride(-1) == 1 and x.shape[-1] % step == 0 and _aligned(x, step) for x in maps):
        maps = [x.view(torch.complex128) for x in maps]
    maps[0].copy_(maps[1])


def _aligned(x: torch.Tensor, step: int) -> bool:
    return x.storage_offset() % step == 0 and all(stride % step == 0 for stride in x.stride()[:-1])


def cropped(x: torch.Tensor, held: Window, want: Window) -> torch.Tensor:
    """The part `want` of x, which holds `held`; a view."""
    rows, columns = want.inside(held)
    return x[..., rows, columns]
