from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def interpreted_kernels(monkeypatch):
    """The Triton kernels in Triton's interpreter, standing in for the plain functions on the CPU."""
    triton = pytest.importorskip("triton", reason="no Triton here; it comes with PyTorch for a GPU")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 2):
        pytest.skip("Triton's interpreter runs these kernels from 3.2 on; older ones need a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels = importlib.import_module("ultragen_core.attention.kernels")
    monkeypatch.setattr("ultragen_core.attention.engine._working_kernels", lambda device: kernels)
    return kernels
