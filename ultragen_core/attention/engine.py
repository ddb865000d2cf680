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
    """The host's attention, its way to the parameters of modules that it manages, and its scale of positions.

    rope_scale: factors on the token positions in t, h and w, with which users stretch or shrink a model's RoPE.
    """

    attention: Attention
    parameters: Parameters = own_parameters
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)


def kernels_for(x: Tensor) -> ModuleType | None:
    """The Triton kernels, where they can stand in for plain PyTorch on x; they have no backward pass.

    Under torch.compile the compiler fuses the plain functions itself. ULTRAGEN_TRITON=0 in the environment switches the
    kernels off.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
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
        from . import kernels

        kernels.check(device)
    except Exception as error:  # whatever breaks in somebody's Triton, plain PyTorch is the answer
        log.info("UltraGen: plain PyTorch instead of Triton kernels (%s)", error)
        return None
    return kernels
