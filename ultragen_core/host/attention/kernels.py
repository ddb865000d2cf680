"""Attention kernels that users choose by name, with attention_kernel of UltraGen Load Model and UltraGen Apply."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ...rules.choice import COMFYUI
from ...wan import WanShape

INSTEAD = f"set attention_kernel to {COMFYUI}"
OVERRIDE = "optimized_attention_override"  # in ComfyUI's transformer_options


class Kernel(Protocol):
    """An attention kernel of another package.

    name: for the log. max_head_dim: most channels of a head. held_maps: memory that it holds in dense self-attention
    besides keys and values, in maps of all tokens.
    """

    name: str
    max_head_dim: int
    held_maps: int

    def require_device(self, device: torch.device) -> None:
        """Raise ValueError where the kernel cannot run on this device."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (b, heads, tokens, head_dim), k and v alike -> the shape of q."""

    def attention_(self, operands: list[Tensor]) -> Tensor:
        """The same for [q, k, v]. Empties the list, and frees the tensors as early as it can."""


class Int8Kernel:
    """comfy-kitchen's int8 attention, a relative of SageAttention (arXiv 2410.02367).

    It rotates q and k, and multiplies q with k and the softmax with v in int8; the softmax itself is float32.
    """

    name = "comfy-kitchen int8"
    max_head_dim = 256
    held_maps = 1  # keys and values in int8

    # The device types that comfy-kitchen supports; for PyTorch an AMD GPU is "cuda" too.
    device_types = ("cuda",)
    functions = (
        "int8_attention",
        "int8_attention_from_prequantized",
        "int8_attention_is_available",
        "list_backends",
        "prequantize_int8_attention",
    )

    def __init__(self):
        """Import comfy-kitchen. Raises ValueError where it is missing or too old."""
        try:
            self._kitchen = importlib.import_module("comfy_kitchen")
        except ModuleNotFoundError:
            raise _needs_package("it is not installed") from None
        except Exception as error:  # its own imports may fail in many ways, such as Triton's without a driver
            raise _needs_package(f"its import fails ({type(error).__name__}: {error})") from error
        if not all(hasattr(self._kitchen, name) for name in self.functions):
            raise _needs_package(f"{_version()} is installed")

    def require_device(self, device: torch.device) -> None:
        if device.type not in self.device_types:
            raise _needs_gpu(f"this model runs on {device.type}")
        backend = self._kitchen.list_backends().get("hip" if torch.version.hip else "cuda", {})
        if backend.get("disabled"):
            raise ValueError(
                "attention_kernel int8 needs PyTorch for CUDA 13.0 or newer, without which ComfyUI switches"
                f" comfy-kitchen's CUDA kernels off; this PyTorch is for CUDA {torch.version.cuda}. Install another"
                f" PyTorch, or {INSTEAD}."
            )
        if not self._kitchen.int8_attention_is_available(device):
            reason = backend.get("unavailable_reason")
            raise _needs_gpu(f"comfy-kitchen has no kernel here ({reason})" if reason else f"got {_described(device)}")

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._kitchen.int8_attention(q, k, v)

    def attention_(self, operands: list[Tensor]) -> Tensor:
        q, k, v = operands
        operands.clear()
        if torch.compiler.is_compiling():  # compiled graphs know int8_attention alone, and free q, k and v themselves
            return self.attention(q, k, v)
        quantized = self._kitchen.prequantize_int8_attention(q, k, v)
        del q, k, v
        return self._kitchen.int8_attention_from_prequantized(quantized)


KERNELS: dict[str, Callable[[], Kernel] | None] = {COMFYUI: None, "int8": Int8Kernel}
"""What attention_kernel offers; None leaves the choice to ComfyUI, other packs and the fastest backend."""


def load_kernel(name: str, shape: WanShape | None = None) -> Kernel | None:
    """Return the kernel of this name, None for ComfyUI's choice.

    shape: the model's, if it is loaded. Raises ValueError where the kernel's package is missing or too old, or where
    it does not fit the model.
    """
    if name not in KERNELS:
        raise ValueError(f"attention_kernel must be one of {', '.join(KERNELS)}, got {name!r}.")
    kernel = KERNELS[name] and KERNELS[name]()
    if kernel and shape and shape.channels // shape.heads > kernel.max_head_dim:
        raise ValueError(
            f"attention_kernel {name} needs heads of at most {kernel.max_head_dim} channels, this model's have"
            f" {shape.channels // shape.heads}. For this model {INSTEAD}."
        )
    return kernel


class KernelOverride:
    """A kernel as ComfyUI's `optimized_attention_override`: it computes self-attention and passes the rest on.

    The rest is cross-attention, whose few keys gain no time and would cost accuracy, and calls with a mask, with heads
    already split, or with low_precision_attention=False. passed_on: the override that gets them; None is ComfyUI's own
    function.
    """

    def __init__(self, kernel: Kernel, passed_on: Callable | None):
        self.kernel, self.passed_on = kernel, passed_on

    def __call__(self, func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        if not args and _is_self_attention(q, k, **kwargs):
            return join_heads(self.kernel.attention(*(split_heads(x, heads) for x in (q, k, v))))
        if self.passed_on is not None:
            return self.passed_on(func, q, k, v, heads, *args, **kwargs)
        return func(q, k, v, heads, *args, **kwargs)

    def self_attention_(self, operands: list[Tensor], heads: int) -> Tensor:
        """Self-attention of [q, k, v], each (b, tokens, c), with any number of queries. Empties the list."""
        operands[:] = [split_heads(x, heads) for x in operands]
        return join_heads(self.kernel.attention_(operands))


def _is_self_attention(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    skip_reshape: bool = False,
    low_precision_attention: bool = True,
    **_,
) -> bool:
    return mask is None and not skip_reshape and low_precision_attention and q.shape == k.shape


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(b, tokens, c) -> (b, heads, tokens, head_dim), a view."""
    b, tokens, c = x.shape
    return x.view(b, tokens, heads, c // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def _needs_package(found: str) -> ValueError:
    return ValueError(
        f"attention_kernel int8 needs comfy-kitchen 0.2.30 or newer, but {found}. Update ComfyUI to 0.33.0 or newer,"
        f" which installs it, or {INSTEAD}."
    )


def _needs_gpu(found: str) -> ValueError:
    return ValueError(
        "attention_kernel int8 needs an NVIDIA GPU of compute capability 7.5 or newer (RTX 20 series on) or an AMD GPU"
        f" of RDNA 3 or newer, but {found}. On this device {INSTEAD}."
    )


def _version() -> str:
    try:
        return importlib.metadata.version("comfy-kitchen")
    except importlib.metadata.PackageNotFoundError:
        return "an older version"


def _described(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"
