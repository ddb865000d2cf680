"""Uses the fastest of PyTorch's own attention backends where ComfyUI would use plain PyTorch attention.

ComfyUI prefers FlashAttention; on Hopper cuDNN's kernel is 1.6 times as fast. A choice of the user or of another pack
(SageAttention, FlashAttention, xformers, an override) is respected, and ULTRAGEN_ATTENTION=core in the environment
switches this module off.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from functools import lru_cache

import comfy.ldm.modules.attention
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
    """The options, with ComfyUI's plain PyTorch attention replaced by a faster backend where there is one."""
    if OVERRIDE in transformer_options or not cudnn_is_faster(device):
        return transformer_options
    return {**transformer_options, OVERRIDE: _cudnn_attention}


def _cudnn_attention(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
    """ComfyUI's attention_pytorch on (b, tokens, c) tensors with cuDNN first; passes any other call on."""
    plain = func is comfy.ldm.modules.attention.attention_pytorch.__wrapped__ and q.ndim == 3 and not args
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
    """Whether cuDNN's attention is right and at least 10% faster here than FlashAttention: measured once, in 0.1 s."""
    if os.environ.get("ULTRAGEN_ATTENTION") == "core" or device.type != "cuda" or torch.version.hip is not None:
        return False
    if getattr(comfy.ops, "NVIDIA_MEMORY_CONV_BUG_WORKAROUND", False):
        return False  # a cuDNN version whose bugs ComfyUI works around
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        return False  # torch before 2.6
    try:
        generator = torch.Generator(device).manual_seed(0)  # not the global one, which samplers may draw from
        q = torch.randn(1, 12, 8192, 128, device=device, dtype=torch.bfloat16, generator=generator)
        (reference, flash), (result, cudnn) = (
            _timed(q, backend) for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        )
    except RuntimeError as error:
        log.info("UltraGen: ComfyUI's own attention, because cuDNN's does not run (%s)", error)
        return False
    agrees = (result - reference).norm() < 1e-2 * reference.norm()
    log.info("UltraGen: attention of 8192 tokens takes %.2f ms with FlashAttention, %.2f with cuDNN", flash, cudnn)
    return bool(agrees) and cudnn < 0.9 * flash


def _timed(q: Tensor, backend: SDPBackend, repeats: int = 5) -> tuple[Tensor, float]:
    """Self-attention of q, and its time in milliseconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with sdpa_kernel([backend]):
        for repeat in range(2 * repeats):
            if repeat == repeats:
                start.record()
            result = F.scaled_dot_product_attention(q, q, q)
        end.record()
    end.synchronize()
    return result.float(), start.elapsed_time(end) / repeats
