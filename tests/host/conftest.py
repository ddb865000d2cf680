"""Toy Wan models on ComfyUI's real classes, with and without UltraGen's weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from support import DATA


@pytest.fixture(scope="session")
def tiny_path():
    return DATA / "tiny_ultragen.safetensors"


@pytest.fixture(scope="session")
def golden():
    return load_file(DATA / "model_io.safetensors"), load_file(DATA / "no_antialias.safetensors")


@pytest.fixture
def tiny(tiny_path):
    """The tiny UltraGen checkpoint, loaded in float32 and patched."""
    from ultragen_core.host.load import load_model

    return load_model(tiny_path, model_options={"dtype": torch.float32})


@pytest.fixture
def dense(tiny_path):
    """The same base weights, unpatched."""
    from ultragen_core.host.load import load_model

    return load_model(tiny_path, "dense", {"dtype": torch.float32})
