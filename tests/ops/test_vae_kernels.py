"""The additions, norms and SiLUs of the VAE: the Triton form, in Triton's interpreter, against the plain one."""

from __future__ import annotations

import pytest
import torch

from ultragen_core.ops import vae
from ultragen_core.ops.dispatch import use_triton
from ultragen_core.vae.context import Context

CPU = torch.device("cpu")


def channel_last(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).movedim(-1, 1)


@pytest.fixture
def both(interpreted_kernels, monkeypatch):
    """run(function): function(triton=True), whose kernel must really run, and function(triton=False)."""
    from ultragen_core.ops import vae_kernels

    used = []
    for name in ("add_", "norm_silu_"):
        kernel = getattr(vae_kernels, name)
        monkeypatch.setattr(vae_kernels, name, lambda *a, kernel=kernel: used.append(kernel) or kernel(*a))

    def run(function):
        fast = function(triton=True)
        count = len(used)
        slow = function(triton=False)
        assert count == 1 and len(used) == 1, "one form ran twice"
        return fast, slow

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_passes(interpreted_kernels, dtype):
    from ultragen_core.ops import vae_kernels

    vae_kernels.check(CPU, dtype)


@pytest.mark.parametrize("with_skip", [False, True])
def test_add(both, with_skip):
    x = vae.DeferredAdd(channel_last(1, 3, 6, 5, 96), torch.randn(96), channel_last(1, 3, 6, 5, 96))
    x = x if with_skip else x._replace(skip=None)
    fast, slow = both(lambda triton: vae.add_(x._replace(value=x.value.clone()), triton))
    torch.testing.assert_close(fast, slow)


def test_a_crop_of_the_norm_and_the_kept_sum(both):
    value, bias, skip, gamma = (
        channel_last(1, 3, 6, 5, 96),
        torch.randn(96),
        channel_last(1, 3, 6, 5, 96),
        torch.randn(96),
    )
    norm, outs = vae.RMSNorm(96**0.5, gamma), []

    def run(triton):
        outs.append(torch.zeros(1, 3, 4, 5, 96).movedim(-1, 1)[..., 1:])
        x = vae.DeferredAdd(value.clone(), bias, skip)
        return vae.norm_silu_(x, norm, outs[-1], (slice(1, 5), slice(1, 5)), keep_sum=True, triton=triton)

    fast, slow = both(run)
    torch.testing.assert_close(fast, slow)
    assert (outs[0] - outs[1]).abs().max() < 1e-5 * outs[1].abs().max()


def test_a_sum_that_nobody_keeps_is_not_written(both):
    value, bias, norm = channel_last(1, 3, 6, 5, 96), torch.randn(96), vae.RMSNorm(96**0.5, torch.randn(96))
    outs = []

    def run(triton):
        outs.append(torch.empty_like(value))
        x = vae.DeferredAdd(value.clone(), bias)
        return vae.norm_silu_(x, norm, outs[-1], (slice(0, 6), slice(0, 5)), keep_sum=False, triton=triton)

    fast, _ = both(run)
    assert torch.equal(fast, value)
    assert (outs[0] - outs[1]).abs().max() < 1e-5 * outs[1].abs().max()


def test_maps_that_the_kernel_cannot_read_take_the_plain_form(interpreted_kernels):
    value, bias = torch.randn(1, 4, 2, 3, 3), torch.randn(4)
    x = vae.DeferredAdd(value.clone(), bias, torch.randn(1, 4, 2, 3, 3))
    torch.testing.assert_close(vae.add_(x, triton=True), value + bias.view(1, 4, 1, 1, 1) + x.skip)


def test_the_dispatcher_chooses_for_a_whole_pass(interpreted_kernels):
    """Once for each context. On "meta" tensors, where memory is counted, no kernel runs."""

    def chosen(device):
        with torch.no_grad():
            return Context(lambda module: None, device, torch.float32, lambda: None).triton

    with use_triton(True):
        assert chosen(CPU) and not chosen(torch.device("meta"))
    with use_triton(False):
        assert not chosen(CPU)
