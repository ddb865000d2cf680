"""What a layer is handed by its host, and whether the Triton kernels may run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""attention(q, k, v, heads) on contiguous (batch, tokens, c) tensors -> (batch, tokens, c)."""

Parameters = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]
"""parameters(module, x) -> its weight and bias as they are to be used with x: cast, on x's device, patched."""


def own_parameters(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The parameters of a plain PyTorch module, as they are."""
    return module.weight, getattr(module, "bias", None)


@dataclass(frozen=True)
class Engine:
    """The host's attention, its way to the parameters of modules that it manages, its scale of positions, and how much
    memory a layer may take.

    rope_scale: factors on the token positions in t, h and w, with which users stretch or shrink a model's RoPE.
    tokens_at_a_time: of all items of a batch together, those that are projected, attended and refined at once; None is
        all. What is computed stays the same.
    """

    attention: Attention
    parameters: Parameters = own_parameters
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tokens_at_a_time: int | None = None


def pieces(x: Tensor, dim: int, tokens_at_a_time: int | None) -> list[tuple[int, int]]:
    """(start, length) of parts of axis `dim` of tokens x (..., c) that are to be computed one after the other."""
    length, tokens = x.shape[dim], x.shape[:-1].numel()
    count = 1 if tokens_at_a_time is None else min(-(-tokens // tokens_at_a_time), length)
    step = -(-length // count)
    return [(start, min(step, length - start)) for start in range(0, length, step)]


def in_pieces(
    function: Callable[[Tensor], Tensor], x: Tensor, dim: int, tokens_at_a_time: int | None, overwrite: bool = False
) -> Tensor:
    """function(x), which keeps the shape and does not mix the items of axis `dim`, a piece at a time.

    overwrite: x may be overwritten with the result, where no backward pass needs it.
    """
    parts = pieces(x, dim, tokens_at_a_time)
    if len(parts) == 1:
        return function(x)
    out = x if overwrite and not torch.is_grad_enabled() else torch.empty_like(x)
    for part in parts:
        out.narrow(dim, *part).copy_(function(x.narrow(dim, *part)))
    return out


def kernels_for(x: Tensor) -> ModuleType | None:
    """The Triton kernels, where they can stand in for plain PyTorch on x.

    They have no backward pass, and x alone does not say whether one will come: it may be the weights that learn.
    Under torch.compile the compiler fuses the plain functions itself. ULTRAGEN_TRITON=0 in the environment switches the
    kernels off.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return None
    return _working_kernels(x.device)


@lru_cache(maxsize=8)
def _working_kernels(device: torch.device) -> ModuleType | None:
    """The kernels if they give the right numbers on this device: Triton may be missing, or lack a compiler."""
    if os.environ.get("ULTRAGEN_TRITON") == "0":
        return None
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    try:
        from ..ops import attention_kernels as kernels

        kernels.check(device)
    except Exception as error:  # whatever breaks in somebody's Triton, plain PyTorch is the answer
        log.info("UltraGen: plain PyTorch instead of Triton kernels (%s)", error)
        return None
    return kernels
