"""The convolution of tests and demo: oneDNN's where it can be, with PyTorch's results and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.support import relative_error, seeded

from tools.demo_nodes import convolution

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def results(conv3d, dtype, **options) -> list[torch.Tensor]:
    """The output, and the gradients of input, weight and bias."""
    groups = options.get("groups", 1)
    given = [seeded(1, 8, 4, 9, 10), seeded(6, 8 // groups, 3, 3, 3, seed=1), seeded(6, seed=2)]
    given = [tensor.to(dtype).requires_grad_() for tensor in given]
    out = conv3d(*given, **options)
    return [out, *torch.autograd.grad(out.square().sum(), given)]


@pytest.mark.parametrize("options", [{}, {"stride": (2, 1, 1)}, {"padding": 1, "groups": 2}, {"padding": "same"}])
def test_results_and_gradients_are_pytorchs(options):
    pairs = zip(
        results(F.conv3d, torch.float32, **options), results(torch.conv3d, torch.float32, **options), strict=True
    )
    for ours, expected in pairs:
        assert ours.shape == expected.shape and relative_error(ours, expected) < 1e-5


def test_what_onednn_cannot_do_keeps_its_bits():
    pairs = zip(results(F.conv3d, torch.float64), results(torch.conv3d, torch.float64), strict=True)
    assert all(torch.equal(ours, expected) for ours, expected in pairs)


def test_it_is_in_place():
    assert F.conv3d is convolution.conv3d is not torch.conv3d


@pytest.mark.parametrize(("dtype", "used"), [(torch.float32, True), (torch.float64, False)])
def test_modules_use_it(monkeypatch, dtype, used):
    called, onednn = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *given: (called.append(1), onednn(*given))[1])
    torch.nn.Conv3d(2, 2, 3, dtype=dtype)(torch.zeros(1, 2, 3, 4, 4, dtype=dtype))
    assert bool(called) == used
