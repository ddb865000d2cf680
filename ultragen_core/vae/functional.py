"""Arithmetic of the Wan VAE's layers that has no Triton form, on maps (1, c, t, h, w)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.vae import DeferredAdd
from ..rectangle import Rectangle

SCORE_BYTES = 256 * 2**20  # of attention scores at a time


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> DeferredAdd:
    """Convolve (1, c, t, h, w) with a 3D weight, or frame by frame with a 2D one, without padding."""
    if weight.ndim == 4:
        y = _convolve(x[0].transpose(0, 1), weight, bias, stride)
        return y._replace(value=y.value.transpose(0, 1)[None])
    return _convolve(x, weight, bias, stride)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> DeferredAdd:
    if x.is_cuda and torch.version.hip is None and torch.backends.cudnn.enabled:
        # cuDNN by name, because some torch versions send 16-bit 3D convolutions past it. The bias, which would be a
        # pass of its own, is deferred. cuDNN never times its plans: where its first one is slow, pixel_pairs.py helps,
        # and a search, in every thread again, would take seconds and, with cudaMallocAsync, all memory.
        padding, dilation = (0,) * len(stride), (1,) * len(stride)
        tf32 = torch.backends.cudnn.allow_tf32
        return DeferredAdd(torch.cudnn_convolution(x, weight, padding, stride, dilation, 1, False, False, tf32), bias)
    return DeferredAdd((F.conv2d if weight.ndim == 4 else F.conv3d)(x, weight, bias, stride))


def attend(q: Tensor, k: Tensor, v: Tensor, check_interrupted: Callable[[], None]) -> Tensor:
    """Attention of one head, q, k, v (s, c) -> (s, c), a block of queries at a time.

    No flash kernel takes a head this wide; blocks bound the scores to SCORE_BYTES.
    """
    out = torch.empty_like(q)
    q, keys = q * q.shape[1] ** -0.5, k.t()
    block = max(1, SCORE_BYTES // (k.shape[0] * k.element_size()))
    # On "meta" only memory is counted, and all blocks from the second on take the same.
    for start in range(0, q.shape[0], block)[: 2 if q.is_meta else None]:
        check_interrupted()
        scores = q[start : start + block] @ keys
        out[start : start + block] = torch.softmax(scores, dim=-1) @ v
    return out


def copy_(out: Tensor, source: Tensor) -> None:
    """out.copy_(source) for maps (1, c, ...): 16 bytes at a time where channels are adjacent, up to 4 times as fast."""
    maps = [x.movedim(1, -1) for x in (out, source)]
    step = 16 // out.element_size()
    if out.is_cuda and all(x.stride(-1) == 1 and x.shape[-1] % step == 0 and _aligned(x, step) for x in maps):
        maps = [x.view(torch.complex128) for x in maps]
    maps[0].copy_(maps[1])


def _aligned(x: Tensor, step: int) -> bool:
    return x.storage_offset() % step == 0 and all(stride % step == 0 for stride in x.stride()[:-1])


def upsample_nearest_(out: Tensor, source: Tensor) -> None:
    """Nearest neighbour into `out`: (1, n, c, t, h, w), n frames for each t, to (1, c, t * n, 2h, 2w)."""
    blocks = out.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, source.shape[1]))
    source = source.permute(0, 2, 3, 1, 4, 5)[..., None, :, None]
    copy_(blocks, source.expand_as(blocks))


def crop(x: Tensor, held: Rectangle, rect: Rectangle) -> Tensor:
    """The part `rect` of x, which holds `held`; a view, or x itself."""
    if held == rect:
        return x
    rows, columns = rect.slices_in(held)
    return x[..., rows, columns]
