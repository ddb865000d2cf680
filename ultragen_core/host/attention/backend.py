"""The fastest of PyTorch's own attention backends, where ComfyUI would use plain PyTorch attention.

ComfyUI puts FlashAttention first; on Hopper cuDNN's kernel does the same work 1.6 times as fast. Whatever the user or
another pack has chosen (SageAttention, FlashAttention, xformers, an override) is left alone, and
ULTRAGEN_ATTENTION=core in the environment leaves everything as it is.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from functools import lru_cache

import comfy.ldm.modules.attention as core
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

OVERRIDE = "optimized_attention_override"
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

log = logging.getLogger(__name__)


def with_fast_attention(transformer_options: dict, device: torch.device) -> dict:
    """The options, with core's plain PyTorch attention replaced by a faster backend where there is one."""
    if OVERRIDE in transformer_options or not cudnn_is_faster(device):
        return transformer_options
    return {**transformer_options, OVERRIDE: _cudnn_attention}


def _cudnn_attention(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
    """core's attention_pytorch on (b, tokens, c) tensors with another order of backends; anything else is passed on."""
    plain = func is core.attention_pytorch.__wrapped__ and q.ndim == 3 and not args
    if (
        not plain
        or kwargs.get("mask") is not None
        or not kwargs.keys() <= {"transformer_options", "_inside_attn_wrapper"}
    ):
        return func(q, k, v, heads, *args, **kwargs)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


@lru_cache(maxsize=8)
def cudnn_is_faster(device: torch.device) -> bool:
    """Whether cuDNN's attention is right and at least a tenth faster here than FlashAttention: tried once, in 0.1 s."""
    if os.environ.get("ULTRAGEN_ATTENTION") == "core" or device.type != "cuda" or torch.version.hip is not None:
        return False
    if getattr(comfy.ops, "NVIDIA_MEMORY_CONV_BUG_WORKAROUND", False):
        return False  # the cuDNN versions that core works around
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        return False  # torch before 2.6
    try:
        q = torch.randn(1, 12, 8192, 128, device=device, dtype=torch.bfloat16)
        (reference, flash), (result, cudnn) = (
            _timed(q, backend) for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        )
    except RuntimeError as error:
        log.info("UltraGen: attention is left to ComfyUI (%s)", error)
        return False
    agrees = (result - reference).norm() < 1e-2 * reference.norm()
    log.info("UltraGen: attention of 8192 tokens takes %.2f ms with FlashAttention, %.2f with cuDNN", flash, cudnn)
    return bool(agrees) and cudnn < 0.9 * flash


def _timed(q: Tensor, backend: SDPBackend, repeats: int = 5) -> tuple[Tensor, float]:
    """Self-attention of q and the milliseconds it takes."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with sdpa_kernel([backend]):
        for repeat in range(2 * repeats):
            if repeat == repeats:
                start.record()
            result = F.scaled_dot_product_attention(q, q, q)
        end.record()
    end.synchronize()
    return result.float(), start.elapsed_time(end) / repeats
