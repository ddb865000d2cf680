"""A feed-forward part with deltas against its formula, its gradients against numerical ones, its memory and FLOPs."""

from __future__ import annotations

import pytest
import torch
from helpers.deltas import random_deltas
from helpers.support import counted, seeded
from torch import nn
from torch.autograd import gradcheck

from ultragen_core import UltraGenFeedForward
from ultragen_core.attention.extras import ExtrasShape, FeedForwardExtras
from ultragen_core.attention.feed_forward import feed_forward
from ultragen_core.plan.flops import feed_forward_delta_flops, rest_of_block_flops
from ultragen_core.vae.memory import PeakMemoryMode
from ultragen_core.wan import WanShape

C, HIDDEN, RANK, TOKENS = 12, 40, 3, 7
SHAPE = ExtrasShape(C, RANK, ffn_channels=HIDDEN)


def toy(channels=C, hidden=HIDDEN) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels))


def extras(shape=SHAPE) -> FeedForwardExtras:
    made = FeedForwardExtras(shape)
    made.load_state_dict(random_deltas(shape, 1))
    return made


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_formula(strength, grad):
    ffn, x, deltas = toy().double(), seeded(2, TOKENS, C).double(), extras().double()
    before, weights = x.clone(), dict(ffn.named_parameters())

    def linear(name, y):
        a, b = deltas.get_submodule(f"{name}.lora_A"), deltas.get_submodule(f"{name}.lora_B")
        low = y @ a.weight.T + a.bias
        base = y @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return base + strength * (low @ b.weight.T + b.bias)

    with torch.set_grad_enabled(grad):
        result = feed_forward(ffn, x, deltas, strength)
        expected = linear("2", torch.nn.functional.gelu(linear("0", x), approximate="tanh"))
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(x, before), "the input belongs to the block"
        assert torch.equal(feed_forward(ffn, x, deltas, 0.0), ffn(x))


def test_gradients():
    part = UltraGenFeedForward(toy(), SHAPE, strength=0.7)
    part.extras.load_state_dict(random_deltas(SHAPE, 1))
    part.double()
    x = seeded(1, 4, C).double().requires_grad_()
    names, parameters = zip(*part.named_parameters(), strict=True)

    def function(x, *tensors):
        return torch.func.functional_call(part, dict(zip(names, tensors, strict=True)), (x,))

    assert len(parameters) == 4 + 8 and gradcheck(function, (x, *parameters), fast_mode=True)


def test_before_training_it_is_wans_and_keeps_its_names():
    ffn, x = toy(), seeded(1, TOKENS, C)
    part = UltraGenFeedForward(ffn, SHAPE)
    assert torch.equal(part(x), ffn(x))
    assert ffn.state_dict().keys() < part.state_dict().keys()
    part(x).sum().backward()
    assert part.extras.get_submodule("0.lora_B").weight.grad.any(), "it can leave its start"


def test_two_hidden_maps_as_without_deltas():
    """So the estimate of memory holds."""
    ffn, x = toy(64, 512), seeded(1, 256, 64)
    deltas, peaks = extras(ExtrasShape(64, 2, ffn_channels=512)), []
    for compute in (lambda: ffn(x), lambda: feed_forward(ffn, x, deltas)):
        with torch.inference_mode(), PeakMemoryMode() as memory:
            compute()
        peaks.append(memory.peak / (4 * 256 * 512))
    assert 2 <= peaks[0] <= peaks[1] < 2.3


def test_flops():
    ffn, x, model = toy(), seeded(1, TOKENS, C), WanShape(1, C, 1, HIDDEN)
    plain, delta = rest_of_block_flops(TOKENS, model), feed_forward_delta_flops(TOKENS, model, RANK)
    cross = rest_of_block_flops(TOKENS, WanShape(1, C, 1, 0))
    assert counted(lambda _: ffn(x)).products == plain.products - cross.products
    assert counted(lambda _: feed_forward(ffn, x, extras())).products == (plain + delta).products - cross.products
