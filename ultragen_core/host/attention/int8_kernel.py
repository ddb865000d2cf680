"""comfy-kitchen's int8 attention, which ComfyUI installs from 0.32 on."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernel import INSTEAD, describe_device, import_package, version_of

PACKAGE = "comfy-kitchen"


class Int8Kernel:
    """comfy-kitchen's int8 attention, a relative of SageAttention (arXiv 2410.02367).

    It rotates q and k, and multiplies q with k and the softmax with v in int8; the softmax itself is float32.
    """

    name = "comfy-kitchen int8"
    max_head_dim = 256
    fewest_keys = 1
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
        self._kitchen = import_package("comfy_kitchen", _needs_package)
        if not all(hasattr(self._kitchen, name) for name in self.functions):
            raise _needs_package(f"{version_of(PACKAGE)} is installed")

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
            raise _needs_gpu(
                f"comfy-kitchen has no kernel here ({reason})" if reason else f"got {describe_device(device)}"
            )

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
