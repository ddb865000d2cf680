"""attention_kernel fp8: quantisation, plans and refusals, with a stand-in for NVIDIA's package."""
from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from helpers.cudnn_frontend import CudnnFrontend
from helpers.support import dense_attention, relative_error, seeded

from ultragen_core.host.attention import fp8_kernel
from ultragen_core.host.attention.fp8_kernel import Fp8Kernel
from ultragen_core.host.attention.kernels import KernelOverride, load_kernel


@pytest.fixture
def frontend(monkeypatch):
    package = CudnnFrontend()
    monkeypatch.setitem(sys.modules, "cudnn", package)
    monkeypatch.setattr(fp8_kernel, "version_of", lambda name: "1.32.0")
    monkeypatch.setattr(Fp8Kernel, "device_types", ("cpu",))
    monkeypatch.setattr(Fp8Kernel, "oldest_capability", (0, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: torch.Stream("cpu") if False else _Stream())
    vars(fp8_kernel._of_thread).clear()
    yield package
    vars(fp8_kernel._of_thread).clear()


class _Stream:
    cuda_stream = 0


def test_error(frontend):
    kernel = KernelOverride(load_kernel("fp8"), None)
    for shift in (0.0, 4.0):
        for n, s in ((2, 200), (1, 3000)):
            q, k, v = (seeded(n, s, 256, seed=i) for i in range(3))
            k, v = k + shift, v + shift
            print(shift, n, s, relative_error(kernel.self_attention_([q, k, v], 2), dense_attention(q.double(), k.double(), v.double(), 2)))
