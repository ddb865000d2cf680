from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def interpreted_kernels(monkeypatch):
    """The Triton kernels in Triton's interpreter, standing in for the plain functions on the CPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels = importlib.import_module("ultragen_core.attention.kernels")
    monkeypatch.setattr("ultragen_core.attention.engine._working_kernels", lambda device: kernels)
    return kernels
