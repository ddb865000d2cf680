"""Memory of the GPU."""

from __future__ import annotations

import comfy.model_management
import psutil
import pytest
import torch

from ultragen_core.host.memory import gpu_memory


@pytest.mark.parametrize(("kind", "known"), [("mps", True), ("cpu", False), ("privateuseone", False)])
def test_memory_of_the_gpu_is_what_comfyui_knows(monkeypatch, kind, known):
    """mps: ComfyUI counts it on any computer. privateuseone: DirectML's, for which it has a fixed number."""
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device(kind))
    assert gpu_memory() == (psutil.virtual_memory().total if known else None)
