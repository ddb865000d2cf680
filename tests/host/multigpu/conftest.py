"""Names of the CPU that stand for GPUs."""

from __future__ import annotations

import pytest


@pytest.fixture
def cpus(monkeypatch):
    """`cpus(count)` -> as many devices, which ComfyUI takes for all that there are; models are unloaded afterwards."""
    import comfy.model_management
    import torch

    def name(count: int) -> list[torch.device]:
        devices = [torch.device("cpu"), *(torch.device("cpu", index) for index in range(count - 1))]
        monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: devices)
        return devices

    yield name
    comfy.model_management.unload_all_models()
