"""The card and the versions that a measurement holds for."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from contextlib import suppress
from typing import NamedTuple

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management
import comfyui_version
import torch

from ...version import VERSION


class Setup(NamedTuple):
    """backend: ComfyUI's attention function, which options of its command line choose."""

    card: str
    driver: str
    torch: str
    comfyui: str
    ultragen: str
    backend: str

    @property
    def key(self) -> str:
        return " | ".join(self)


def current_setup() -> Setup | None:
    """Return the setup of this process; None where ComfyUI uses no GPU."""
    device = comfy.model_management.get_torch_device()
    return None if device.type == "cpu" else setup_of(device)


def setup_of(device: torch.device) -> Setup:
    backend = comfy_attention.optimized_attention.__name__
    if asked := os.environ.get("ULTRAGEN_ATTENTION"):
        backend += f", ULTRAGEN_ATTENTION={asked}"
    return Setup(
        _card(device),
        _driver(device.type),
        torch.__version__,
        comfyui_version.__version__,
        VERSION,
        backend,
    )


def _card(device: torch.device) -> str:
    name = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return name(device) if name else device.type


@functools.cache
def _driver(device_type: str) -> str:
    """Return the version of NVIDIA's driver, or of HIP; "unknown" for others."""
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    if device_type == "cuda":
        with suppress(OSError, AttributeError):  # no NVML, or one without these functions
            nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
            text = ctypes.create_string_buffer(80)
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
                return text.value.decode("ascii", "replace")
    return "unknown"
