"""Chooses between the plain PyTorch and the Triton form of a group of functions: once a layer, for all of them.

ULTRAGEN_TRITON=0 in the environment switches every Triton kernel of the pack off.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from ..out_of_ram import is_host_out_of_memory

log = logging.getLogger(__name__)

ATTENTION_KERNEL_MODULES = ("norm_rope_kernels", "resample_kernels", "depthwise_kernels")
"""The modules of this folder with the kernels of an attention layer. Each has `check(device, dtype)`, which raises."""
BLOCK_KERNEL_MODULES = ("residual_norm_kernels",)
"""The same for the rest of a block."""
FP8_KERNEL_MODULES = ("quantize_kernels",)
"""The same for attention in 8 bits."""
FP8_LINEAR_KERNEL_MODULES = ("to_fp8_kernels",)
"""The same for the inputs of matrix products in fp8."""
GATHER_KERNEL_MODULES = ("gather_kernels",)
"""The same for the exchange of tokens between GPUs."""

_forced: bool | None = None


def triton_for(x: Tensor, modules: tuple[str, ...]) -> bool:
    """Whether the kernels of these modules can stand in for plain PyTorch on x's device, in x's dtype.

    The kernels have no backward pass, and x alone does not tell whether one will come: it may be the weights that
    learn. Under torch.compile the compiler fuses the plain functions itself.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    if _forced is not None:
        return _forced
    return os.environ.get("ULTRAGEN_TRITON") != "0" and _kernels_work(modules, x.device, x.dtype)


@contextmanager
def use_triton(choice: bool) -> Iterator[None]:
    """Inside, every function has its Triton form (True) or its plain form (False): for tests and benchmarks.

    Functions that the kernels cannot serve (a backward pass, torch.compile) stay plain.
    """
    global _forced
    before, _forced = _forced, choice
    try:
        yield
    finally:
        _forced = before


def _kernels_work(modules: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels run and give the right numbers here: Triton may be missing, or lack a compiler."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    try:
        return _check_once(modules, device, dtype)
    except Exception as error:  # out of memory
        _log_plain(error)
        return False


@cache
def _check_once(modules: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> bool:
    """Run the modules' checks. The answer holds for the process, so a lack of memory, which may pass, is raised."""
    try:
        for name in modules:
            kernels(name).check(device, dtype)
    except Exception as error:  # whatever breaks in a user's Triton, plain PyTorch is the answer
        if is_host_out_of_memory(error) or "out of memory" in str(error).lower():
            raise
        _log_plain(error)
        return False
    return True


def _log_plain(error: Exception) -> None:
    log.info("UltraGen: plain PyTorch instead of Triton kernels (%s)", error)


@cache
def kernels(name: str) -> ModuleType:
    """A module of this folder with kernels, which needs Triton. Cheaper than an import statement in every call."""
    return import_module(f".{name}", __package__)


def power_of_2(n: int) -> int:
    """The least power of two that is not below n; Triton's own function takes ten times as long."""
    return 1 << (n - 1).bit_length()


def check_equal(name: str, result: Tensor, expected: Tensor) -> None:
    """Raise RuntimeError where a kernel's result is off by 1% or more (relative, L2)."""
    error = ((result.float() - expected.float()).norm() / expected.float().norm()).item()
    if not error < 1e-2:
        raise RuntimeError(f"Triton's {name} is off by {error:.1e}")
