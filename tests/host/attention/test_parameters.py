"""Parameters of ComfyUI's layers: used as they are where ComfyUI would return them unchanged, else by ComfyUI."""

from __future__ import annotations

import comfy.ops
import pytest
import torch
from helpers.support import relative_error, seeded

from ultragen_core.host.attention.parameters import Operations, managed_parameters

C = 8


@pytest.fixture
def casts(monkeypatch):
    """The modules that ComfyUI casts."""
    modules, cast = [], comfy.ops.cast_bias_weight
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lambda s, *a, **k: modules.append(s) or cast(s, *a, **k))
    return modules


def linear(dtype=torch.float32) -> Operations.Linear:
    module = Operations.Linear(C, C, dtype=dtype).requires_grad_(False)
    module.weight.copy_(seeded(C, C)), module.bias.copy_(seeded(C, seed=1))
    return module


def norm(dtype=torch.float32) -> torch.nn.Module:
    module = comfy.ops.disable_weight_init.RMSNorm(C, dtype=dtype).requires_grad_(False)
    module.weight.copy_(seeded(C))
    return module


@pytest.mark.parametrize("make", [linear, norm])
def test_resident_parameters_are_used_as_they_are(casts, make):
    module, x = make(), seeded(2, C)
    weight, bias = managed_parameters(module, x)
    assert weight is module.weight and bias is module.bias
    assert torch.equal(linear()(x), torch.nn.functional.linear(x, linear().weight, linear().bias))
    assert not casts


@pytest.mark.parametrize("make", [linear, norm])
def test_another_dtype_is_cast(casts, make):
    module, x = make(torch.bfloat16), seeded(2, C)
    weight, bias = managed_parameters(module, x)
    assert weight.dtype == torch.float32 and (bias is None or bias.dtype == torch.float32)
    assert torch.equal(weight, module.weight.float()) and casts == [module]
    if isinstance(module, Operations.Linear):
        assert module(x).dtype == torch.float32 and casts == [module, module]


@pytest.mark.parametrize("make", [linear, norm])
def test_patches_are_applied(casts, make):
    module, x = make(), seeded(2, C)
    plain = module(x)
    module.weight_function = [lambda weight: 2 * weight]
    assert torch.equal(managed_parameters(module, x)[0], 2 * module.weight) and casts == [module]
    if isinstance(module, Operations.Linear):
        assert relative_error(module(x) - module.bias, 2 * (plain - module.bias)) < 1e-6


def test_weights_on_another_device_are_fetched(casts):
    module = linear().to("meta")
    with pytest.raises(NotImplementedError, match="meta"):
        managed_parameters(module, seeded(2, C))
    assert casts == [module]
